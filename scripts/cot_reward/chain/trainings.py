"""What the chain prepares and tells before a training: data sets, checkpoints, steps in all."""

import math
import os
import shutil
from pathlib import Path

from cot_reward.chain.steps import Step, Training
from cot_reward.dpo.checkpoint import checkpoint_to_resume
from cot_reward.errors import UserError
from cot_reward.rows.reading import read_rows
from cot_reward.settings import read_yaml
from cot_reward.store import write_json

# With fewer steps a training has hardly left its warm-up.
FEW_STEPS = 30


def write_dataset_info(run: Path, *trainings: Training) -> None:
    """Name the data sets of a run for LLaMA-Factory, which finds files by dataset_info.json."""
    known = {}
    for training in trainings:
        columns = {"messages": "conversations", "images": "images"}
        if training.name == "stage2":
            columns["videos"] = "videos"  # every judged row has this key
        known[training.data_set] = {
            "file_name": os.path.relpath(training.rows, run),
            "formatting": "sharegpt",
            "columns": columns,
        }
    write_json(run / "dataset_info.json", known)


def continued(step: Step) -> tuple[str, ...]:
    """The command of a training that was stopped: it goes on at its last checkpoint, if it can.

    Where it cannot, the unfinished result is removed, because a trainer refuses a folder with
    files, or (LLaMA-Factory, full fine-tuning without DeepSpeed) goes on with the start's weights.
    """
    assert step.out is not None
    if step.trains == "dpo" and _has_checkpoint(step.out):
        return (*step.command, "--resume_from_checkpoint", "true")
    if step.sft and _has_checkpoint(step.out):
        config = read_yaml(step.sft.config)
        if config.get("deepspeed") or config.get("finetuning_type") == "lora":
            return step.command
    if step.out.exists():
        shutil.rmtree(step.out)
    return step.command


def _has_checkpoint(out: Path) -> bool:
    try:
        return checkpoint_to_resume("true", out) is not None
    except UserError:
        return False


def describe_sft(config_path: Path, rows_file: Path, processes: int) -> str:
    """Rows and optimiser steps of a training by LLaMA-Factory, with a word when they are few."""
    config = read_yaml(config_path)
    rows = sum(1 for _ in read_rows(rows_file))
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
            f"them only; lower gradient_accumulation_steps in {config_path}, or give more rows"
        )
    return text


def count_steps(rows: int, rows_per_step: int, epochs: float) -> int:
    """Optimiser steps as transformers counts them; the last of an epoch may have fewer rows."""
    return math.ceil(epochs * math.ceil(rows / rows_per_step))
