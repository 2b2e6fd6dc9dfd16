"""A training of LLaMA-Factory as it will read it: YAML, overrides, data files, steps."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from cot_reward.errors import UserError, nearest
from cot_reward.rows.reading import read_rows
from cot_reward.settings import read_yaml

# With fewer steps a training has hardly left its warm-up.
FEW_STEPS = 30
# Keys of which one word is "no".
_STRATEGIES = ("save_strategy", "eval_strategy", "logging_strategy")


def read_config(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The YAML with KEY=VALUE arguments over it, as `llamafactory-cli train` takes them.

    Raises UserError for an argument of another form, a training without an output folder, and a
    "no" that YAML reads as false, which LLaMA-Factory refuses when the model is loaded.
    """
    config = read_yaml(path)
    for argument in overrides:
        key, equals, value = argument.partition("=")
        if not equals or not key:
            raise UserError(f"{argument}: not KEY=VALUE, as llamafactory-cli takes its arguments")
        config[key] = yaml.safe_load(value)
    for key in ("output_dir", "dataset", "model_name_or_path"):
        if not config.get(key):
            raise UserError(f"{path}: {key} is missing")
    for key in _STRATEGIES:
        if config.get(key) is False:
            raise UserError(
                f"{path}: {key} is false, as YAML reads no without quotation marks: write "
                f'{key}: "no" in YAML, or {key}=\'"no"\' as an argument'
            )
    return config


def data_files(config: Mapping[str, Any]) -> list[Path]:
    """The files of the training's data sets, by dataset_info.json. Raises UserError."""
    return [file for file, _ in _data_sets(config)]


def media_columns(config: Mapping[str, Any]) -> list[tuple[Path, list[str]]]:
    """Each of these files, with the columns that hold paths of images and videos."""
    return [
        (file, [columns[kind] for kind in ("images", "videos") if columns.get(kind)])
        for file, columns in _data_sets(config)
    ]


def _data_sets(config: Mapping[str, Any]) -> list[tuple[Path, dict[str, str]]]:
    folder = Path(config.get("dataset_dir", "data"))
    info = folder / "dataset_info.json"
    try:
        known = json.loads(info.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{info}: cannot be read: {error}") from None
    found = []
    for name in _names(config["dataset"]):
        if name not in known:
            raise UserError(f"{info} has no data set '{name}'.{nearest(name, known)}")
        # A data set of the hub has no file here.
        if file_name := known[name].get("file_name"):
            found.append((folder / file_name, known[name].get("columns", {})))
    return found


def _names(dataset: Any) -> list[str]:
    listed = dataset if isinstance(dataset, list) else str(dataset).split(",")
    return [str(name).strip() for name in listed]


def describe(config: Mapping[str, Any], where: Path, files: Sequence[Path], processes: int) -> str:
    """Rows and optimiser steps of a training, with a word when they are few.

    `where` is the YAML that the config is from.
    """
    rows = sum(1 for file in files for _ in read_rows(file))
    limit = config.get("max_samples")
    rows = min(rows, int(limit)) if limit else rows
    rows_per_step = (
        int(config.get("per_device_train_batch_size", 8))
        * int(config.get("gradient_accumulation_steps", 1))
        * max(1, processes)
    )
    epochs = float(config.get("num_train_epochs", 3.0))
    steps = count_steps(rows, rows_per_step, epochs)
    text = f"{rows} rows, {rows_per_step} a step, {epochs:g} epochs: {steps} steps"
    if steps < FEW_STEPS:
        text += (
            f"; that is few (under {FEW_STEPS}): the learning rate is near its peak for some of "
            f"them only; lower gradient_accumulation_steps in {where}, or give more rows"
        )
    return text


def count_steps(rows: int, rows_per_step: int, epochs: float) -> int:
    """Optimiser steps as transformers counts them; the last of an epoch may have fewer rows."""
    return math.ceil(epochs * math.ceil(rows / rows_per_step))


def can_resume(config: Mapping[str, Any]) -> bool:
    """Whether LLaMA-Factory goes on from a checkpoint with the checkpoint's weights.

    Full fine-tuning without DeepSpeed does not: transformers' Trainer looks for other names of the
    weights than a vision-language model's checkpoint has, and goes on with the start's weights
    (huggingface/transformers issue 43701).
    """
    return bool(config.get("deepspeed")) or config.get("finetuning_type", "lora") == "lora"
