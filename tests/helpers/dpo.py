"""Tiny models, pictures and DPO rows for the tests of stage 3."""

import random
from pathlib import Path
from typing import Any

import torch
from cot_reward.demo import tiny_qwen, world
from cot_reward.demo.settings import ModelSizes
from cot_reward.dpo import build, trl_settings
from cot_reward.dpo.collator import PairCollator
from cot_reward.dpo.load import load_train_and_eval
from transformers import AutoProcessor, Qwen2VLConfig, Qwen2VLForConditionalGeneration

from helpers.environments import REPO
from helpers.rows import write_lines

CAPTION = "Which fits better?\nText Caption: [a red circle]"
FORM = "<think>\n{}.\n</think>\n<answer>Image {} is better</answer>"
SIZES = [(56, 56), (90, 61), (200, 150), (30, 300)]


def save_model(folder: Path, kind: str = "qwen2_5_vl") -> Path:
    """A random model of some 0.1 M parameters with tokenizer and processor."""
    torch.manual_seed(0)
    small = ModelSizes(hidden=32, mlp=64, layers=2, heads=2, kv_heads=1, vision_hidden=32)
    family = "qwen2_5_vl" if kind == "qwen2_vl" else kind
    tokenizer = tiny_qwen.build_tokenizer("Judge. Text Caption: [{caption}]", 400, family)
    model: Any = tiny_qwen.build_model(tokenizer, small, family)
    if kind == "qwen2_vl":
        config = Qwen2VLConfig(
            text_config=model.config.text_config.to_dict() | {"model_type": "qwen2_vl_text"},
            vision_config={"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2}
            | {"mlp_ratio": 2, "initializer_range": 0.05},
            tie_word_embeddings=True,
            **{
                name: getattr(model.config, name)
                for name in (
                    "image_token_id",
                    "video_token_id",
                    "vision_start_token_id",
                    "vision_end_token_id",
                )
            },
        )
        made = Qwen2VLForConditionalGeneration(config)
        made.generation_config, model = model.generation_config, made
    model.save_pretrained(folder)
    tiny_qwen.build_processor(tokenizer, family).save_pretrained(folder)
    return folder


def save_pictures(folder: Path) -> Path:
    """0.png, 1.png, ... of SIZES."""
    rng = random.Random(0)
    for number, size in enumerate(SIZES):
        world.draw((0, 4), rng, 10.0).resize(size).save(folder / f"{number}.png")
    return folder


def row(images: list[str], chosen: str = "1", **changes: Any) -> dict[str, Any]:
    """A DPO row; the texts differ in the answer."""
    return {
        "problem": "<image>" * len(images) + CAPTION,
        "chosen": FORM.format("Red, blue", chosen),
        "rejected": FORM.format("Red, blue", "2"),
        "images": images,
        "videos": [],
        "id": "0",
        "task": "image_generation",
        "order": "given",
        "chosen_model": "a",
        "rejected_model": "b",
    } | changes


def varied(
    count: int, images: tuple[int, ...] = (2,), longest: int = 12, form: str = "{} {}"
) -> list[dict[str, Any]]:
    """Rows of different prompts, texts, picture sizes and numbers of pictures.

    `form` takes some words, of which rejected texts have at most two thirds of `longest`, and the
    answer's number.
    """
    rng = random.Random(1)
    words = [
        "red",
        "blue",
        "circle",
        "square",
        "score",
        "better",
        "the",
        "picture",
        "shows",
        "a",
        "small",
        "large",
    ]

    def text(answer: int, longest: int) -> str:
        return form.format(" ".join(rng.choices(words, k=rng.randint(2, longest))), answer)

    rows = []
    for number in range(count):
        shown = [f"{rng.randrange(len(SIZES))}.png" for _ in range(images[number % len(images)])]
        answer = 1 + number % 2
        texts = {
            "problem": "<image>" * len(shown) + CAPTION + " " + " ".join(rng.choices(words, k=9)),
            "chosen": text(answer, longest),
            "rejected": text(3 - answer, longest * 2 // 3),
            "id": str(number),
        }
        rows.append(row(shown, rejected_model="ab"[number // 2 % 2]) | texts)
    return rows


def write(path: Path, rows: list[Any]) -> str:
    return str(write_lines(path, rows))


def trainer_for(base: Path, folder: Path, pairs: str, out: Path, *flags: str) -> Any:
    """A trainer as `scripts/DPO_VL.py` builds it, and the settings that it was built from."""
    common = (
        f"--config {REPO}/configs/demo/dpo.yaml --model_name_or_path {base} --data_path {pairs} "
        f"--image_folder {folder} --output_dir {out} --report_to none "
        "--per_device_train_batch_size 2 --max_steps 1 --preference_tokens all"
    )
    parsed = trl_settings.parse([*common.split(), *flags])
    rows = [part.dataset(**parsed[0].of_rows()) for part in load_train_and_eval(*parsed) if part]
    return build.build_trainer(*parsed, *rows), parsed


def collator_for(base: Path, folder: Path, pixels: int = 262144) -> PairCollator:
    """TRL's batches of rows about pictures in `folder`."""
    processor = AutoProcessor.from_pretrained(base)
    return PairCollator(processor, image_folder=folder, image_max_pixels=pixels)


# LLaMA-Factory's template for each family, as its profile names it.
SFT_TEMPLATES = {
    "qwen2_5_vl": "qwen2_vl",
    "qwen3_vl": "qwen3_vl_nothink",
    "qwen3_5": "qwen3_5_nothink",
}
# argv: model, folder of images, folder of rows.jsonl and later ids.json, pixel bound, template.
LLAMA_FACTORY = """
import json, sys
from llamafactory.data.processor.supervised import SupervisedDatasetProcessor
from llamafactory.data.template import get_template_and_fix_tokenizer
from llamafactory.hparams import DataArguments, ModelArguments
from llamafactory.model import load_tokenizer

base, folder, work, pixels, name = sys.argv[1:]
loaded = load_tokenizer(ModelArguments(model_name_or_path=base, image_max_pixels=int(pixels)))
data = DataArguments(template=name, cutoff_len=13000)
template = get_template_and_fix_tokenizer(loaded["tokenizer"], data)
encoder = SupervisedDatasetProcessor(template, **loaded, data_args=data)
rows = [json.loads(line) for line in open(f"{work}/rows.jsonl")]
out = []
for key in ("chosen", "rejected"):
    for row in rows:
        images = [f"{folder}/{name}" for name in row["images"]]
        ids, labels = encoder._encode_data_example(
            prompt=[{"role": "user", "content": row["problem"]}],
            response=[{"role": "assistant", "content": row[key]}],
            system="", tools="", images=images, videos=[], audios=[],
        )
        grid = template.mm_plugin._get_mm_inputs(images, [], [], loaded["processor"])
        grid = grid["image_grid_thw"].tolist()
        out.append({"input_ids": ids, "labels": labels, "grid": grid})
json.dump(out, open(f"{work}/ids.json", "w"))
"""
