"""The base's training: batches, the attention of the vision tower, perception, repeatability."""

import dataclasses
import json
import random
import re
from pathlib import Path

import pytest
import torch
from cot_reward.demo import lessons, pretrain, tiny_qwen
from cot_reward.demo.settings import BaseSettings, ModelSizes, WorldSettings
from helpers.environments import REPO

SETTINGS = WorldSettings(template=REPO / "configs/demo/template.txt")


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_qwen.build_tokenizer(SETTINGS.read_template(), ModelSizes().vocab)


@pytest.fixture(scope="module")
def encoder(tokenizer) -> pretrain.Encoder:
    return pretrain.Encoder(tiny_qwen.build_processor(tokenizer))


@pytest.fixture
def model(tokenizer):
    torch.manual_seed(0)
    return tiny_qwen.build_model(tokenizer, ModelSizes())


def test_a_batch_teaches_the_targets_and_nothing_else(encoder, tokenizer) -> None:
    rng = random.Random(0)
    rows = [lessons.picture_lesson(rng, 10.0) for _ in range(4)] + [lessons.sum_lesson(rng)]
    batch = encoder.batch(rows)
    for row, ids, mask, labels in zip(
        rows, batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True
    ):
        learned = labels != -100
        assert tokenizer.decode(ids[learned]) == row.target + "<|im_end|>"
        assert (labels[learned] == ids[learned]).all()
        prompt = encoder.prompt(row.prompt)
        assert tokenizer.decode(ids[mask.bool()]) == prompt + row.target + "<|im_end|>"
        assert (ids[~mask.bool()] == encoder.pad).all()
    pictures = sum(len(row.images) for row in rows)
    assert batch["image_grid_thw"].tolist() == [[1, 4, 4]] * pictures
    image_tokens = pictures * tiny_qwen.FAMILIES["qwen2_5_vl"].image_tokens
    assert (batch["input_ids"] == encoder.image).sum() == image_tokens
    assert batch["mm_token_type_ids"].sum() == image_tokens


def test_the_warm_up_teaches_the_points_alone(encoder, tokenizer) -> None:
    batch = pretrain._points_batch(encoder, random.Random(0), 3)
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        text = tokenizer.decode(ids[ids != encoder.pad])
        points = "".join(re.findall(r"\((\d\d)/40\)", text))
        assert len(points) == 8
        assert tokenizer.decode(labels[labels != -100]) == points


def test_a_batch_of_texts_has_no_pictures(encoder) -> None:
    batch = encoder.batch([lessons.sum_lesson(random.Random(0))])
    assert set(batch) == {"input_ids", "attention_mask", "labels"}


def test_one_call_for_all_pictures_gives_the_same_features(model) -> None:
    visual = model.model.visual.eval()
    patches, grid = torch.randn(3 * 16, 3 * 2 * 14 * 14), torch.tensor([[1, 4, 4]] * 3)
    with torch.no_grad():
        one_by_one = visual(patches, grid).pooler_output
        visual.config._attn_implementation = pretrain.VISION_ATTENTION
        together = visual(patches, grid).pooler_output
    torch.testing.assert_close(together, one_by_one)


def test_perception_is_a_share_of_every_attribute_and_repeatable(model, encoder) -> None:
    shares = pretrain.perception(model, encoder, seed=0, noise=10.0, number=10)
    assert list(shares) == ["shade", "shade_points", "size", "size_points", "sums"]
    # Ten pictures: whole tenths, also where a share is that of an untrained model.
    assert all(round(10 * shares[name]) == 10 * shares[name] for name in list(shares)[:-1])
    assert shares["sums"] == 0
    assert pretrain.perception(model, encoder, seed=0, noise=10.0, number=10) == shares


@pytest.mark.slow
def test_training_is_repeatable_and_leaves_a_summary(tmp_path: Path) -> None:
    small = BaseSettings(warmup_steps=4, base_steps=4, batch=8)
    summaries = []
    for name in ("one", "two"):
        settings = dataclasses.replace(small, model_out=tmp_path / name)
        summaries.append(pretrain.write_base(SETTINGS, settings, ["test"]))
        assert json.loads((tmp_path / name / "summary.json").read_text()) == summaries[-1]
    assert summaries[0]["loss"] == summaries[1]["loss"]
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two")]
    assert weights[0] == weights[1]
    changed = (tmp_path / "two" / "model.safetensors").stat().st_mtime_ns
    again = dataclasses.replace(small, model_out=tmp_path / "two")
    assert pretrain.write_base(SETTINGS, again, ["test"]) == summaries[1]
    assert (tmp_path / "two" / "model.safetensors").stat().st_mtime_ns == changed
