"""Batches: images, token ids, both layouts, and batches without their last pairs."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from cot_reward.dpo.collator import SharedPrefixCollator, keep_first_rows
from cot_reward.dpo.pairs import load_pairs
from cot_reward.errors import UserError
from cot_reward.media.images import load_image
from cot_reward.training import rows as training_rows
from cot_reward.training.plain_chat import make_plain
from helpers.dpo import (
    FORM,
    LLAMA_FACTORY,
    SFT_TEMPLATES,
    collator_for,
    row,
    trainer_for,
    varied,
    write,
)
from helpers.environments import REPO
from PIL import Image
from transformers import AutoProcessor


def test_images_are_opened_by_the_collator_and_each_once(
    base: Path, folder: Path, pairs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    load = load_image

    def counting(path: Path) -> Image.Image:
        opened.append(path.name)
        return load(path)

    monkeypatch.setattr(training_rows, "load_image", counting)
    rows = load_pairs(pairs, str(folder)).dataset()
    assert not opened
    batch = collator_for(base, folder)([rows[0], rows[1]])
    assert sorted(opened) == sorted({*rows[0]["image_paths"], *rows[1]["image_paths"]})
    assert batch["input_ids"].shape[0] == 4
    for name in rows[0]["image_paths"]:
        (tmp_path / name).write_bytes((folder / name).read_bytes()[:200])
    with pytest.raises(UserError, match="broken or cut"):
        collator_for(base, tmp_path)([rows[0]])


def test_both_layouts_have_the_same_tokens(base: Path, folder: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", varied(5, images=(2, 1, 3), form=FORM))
    rows = list(load_pairs(path, str(folder)).dataset())
    stock = collator_for(base, folder, 6000)(rows)
    shared = SharedPrefixCollator(
        AutoProcessor.from_pretrained(base), image_folder=folder, image_max_pixels=6000
    )(rows)
    assert shared["attention_mask"].sum() == stock["attention_mask"].sum()
    for number in range(10):
        real = stock["attention_mask"][number].bool()
        pair = number % 5
        response = shared["completion_mask"][number].bool()
        ids = [
            *shared["prompt_ids"][pair][shared["prompt_mask"][pair].bool()].tolist(),
            shared["input_ids"][number][0].item(),
            *shared["input_ids"][number][response].tolist(),
        ]
        assert ids == stock["input_ids"][number][real].tolist()
        assert response.sum() == stock["completion_mask"][number].sum()
    half = len(stock["image_grid_thw"]) // 2
    assert torch.equal(shared["image_grid_thw"], stock["image_grid_thw"][:half])
    assert torch.equal(shared["pixel_values"], stock["pixel_values"].chunk(2)[0])


@pytest.mark.slow
@pytest.mark.parametrize("family", list(SFT_TEMPLATES))
def test_token_ids_are_those_of_llama_factory(
    bases: dict[str, Path], folder: Path, tmp_path: Path, family: str
) -> None:
    """Stages 1 and 2 train on LLaMA-Factory's ids; images above and below the bound."""
    base = bases[family]
    if family == "qwen3_5":
        # As the chain does behind stage 1: its own template rewrites responses.
        base = Path(shutil.copytree(base, tmp_path / "plain"))
        make_plain(base)
    pixels = 6000  # 0.png and 1.png lie below
    rows = [row(["0.png", "1.png"]), row(["2.png", "3.png"]), row(["1.png", "2.png", "3.png"])]
    rows.append(row(["3.png", "0.png"], problem="A <image>\nand  <image> b\n"))
    write(tmp_path / "rows.jsonl", rows)
    ids = tmp_path / "ids.json"
    subprocess.run(
        [
            REPO / ".envs/sft/bin/python", "-c", LLAMA_FACTORY, base, folder, tmp_path, str(pixels),
            SFT_TEMPLATES[family],
        ],
        check=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "passive"},
    )  # fmt: skip
    theirs = json.loads(ids.read_text())
    dataset = load_pairs(str(tmp_path / "rows.jsonl"), str(folder)).dataset()
    batch = collator_for(base, folder, pixels)(list(dataset))
    grids = [tuple(grid) for grid in batch["image_grid_thw"].tolist()]
    assert len(theirs) == 2 * len(rows)
    for number, their in enumerate(theirs):
        real = batch["attention_mask"][number].bool()
        ours = batch["input_ids"][number][real].tolist()
        learned = batch["completion_mask"][number][real].bool()
        assert ours == their["input_ids"]
        expected = [label for label in their["labels"] if label != -100]
        assert torch.tensor(ours)[learned].tolist() == expected
        take = len(their["grid"])
        assert grids[:take] == [tuple(grid) for grid in their["grid"]]
        grids = grids[take:]


@pytest.mark.parametrize("flags", [(), ("--shared_prefix", "false")])
def test_a_batch_without_its_last_pairs(
    base: Path, folder: Path, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    pairs = write(tmp_path / "pairs.jsonl", varied(4, images=(2, 1, 3), form=FORM))
    trainer, _ = trainer_for(base, folder, pairs, tmp_path / "out", *flags)
    rows = [trainer.train_dataset[i] for i in range(4)]
    cut = keep_first_rows(trainer.data_collator(rows), 2)
    expected = trainer.data_collator(rows[:2])
    assert cut.keys() == expected.keys()
    assert cut["images"].tolist() == [2, 1]
    assert torch.equal(cut["pixel_values"], expected["pixel_values"])
    assert torch.equal(cut["image_grid_thw"], expected["image_grid_thw"])
    losses = [
        trainer.compute_loss(trainer.model, trainer._prepare_inputs(batch)).item()
        for batch in (cut, expected)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
