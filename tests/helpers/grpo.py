"""A tiny model that writes the judge's form, comparisons, and trainers of GRPO on them."""

import random
from pathlib import Path
from typing import Any

import torch
from cot_reward.demo.lessons import Lesson
from cot_reward.demo.pretrain import Encoder
from cot_reward.grpo import build, trl_settings
from cot_reward.grpo.load import load_train_and_eval
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from helpers.dpo import FORM
from helpers.environments import REPO
from helpers.pictures import picture
from helpers.rows import raw_row, write_lines

TEMPLATE = "Which fits better?\nText Caption: [{caption}]"
COLOURS = {"red": (200, 30, 30), "blue": (30, 30, 200), "white": (230, 230, 230)}


def save_world(folder: Path, count: int = 8, label: int = 1) -> Path:
    """media/NAME.png, template.txt, and rows.jsonl: raw comparisons that all have this label."""
    for name, colour in COLOURS.items():
        picture(folder / f"media/{name}.png", colour, size=56)
    (folder / "template.txt").write_text(TEMPLATE + "\n")
    names = list(COLOURS)
    rows = [
        raw_row(
            f"a {names[number % 3]} circle {number}",
            [f"{names[number % 3]}.png", f"{names[(number + 1) % 3]}.png"],
            label,
        )
        for number in range(count)
    ]
    write_lines(folder / "rows.jsonl", rows)
    return folder


def save_speaker(base: Path, world: Path, folder: Path, steps: int = 120) -> Path:
    """The base, trained to write FORM with either answer, whatever it is shown."""
    torch.manual_seed(0)
    rng = random.Random(0)
    processor = AutoProcessor.from_pretrained(base)
    model: Any = AutoModelForImageTextToText.from_pretrained(base)
    encoder = Encoder(processor)
    images = [Image.open(world / f"media/{name}.png") for name in COLOURS]
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(steps):
        lessons = [
            Lesson(
                f"<image><image>{TEMPLATE}".replace("{caption}", f"a red circle {number}"),
                FORM.format("Red, blue", 1 + number % 2),
                tuple(rng.sample(images, 2)),
            )
            for number in range(8)
        ]
        model(**encoder.batch(lessons)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def flags_for(model: Path, world: Path, out: Path, *flags: str) -> list[str]:
    """The flags of a run on one file of the world, eight texts of four questions at once."""
    common = (
        f"--config {REPO}/configs/demo/grpo.yaml --model_name_or_path {model} --output_dir {out} "
        f"--image_folder {world}/media --image_root {world}/media --data_path {world}/rows.jsonl "
        f"--template {world}/template.txt --max_completion_length 40 --report_to none "
        "--per_device_train_batch_size 32 --orders given"
    )
    return [*common.split(), *flags]


def trainer_for(model: Path, world: Path, out: Path, *flags: str) -> tuple[Any, ...]:
    """The arguments of `run.train`, as `scripts/GRPO_VL.py` makes them."""
    parsed = trl_settings.parse(flags_for(model, world, out, *flags))
    train, held_out = load_train_and_eval(*parsed)
    return build.build_trainer(*parsed, train, held_out), *parsed, train
