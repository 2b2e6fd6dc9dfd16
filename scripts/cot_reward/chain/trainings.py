"""What the chain prepares before a training: data sets, checkpoints."""

import os
import shutil
from pathlib import Path

from cot_reward.chain.step import Step, Training
from cot_reward.errors import UserError
from cot_reward.settings import read_yaml
from cot_reward.sft.config import can_resume
from cot_reward.store import write_json
from cot_reward.training.checkpoint import checkpoint_to_resume


def write_dataset_info(run: Path, *trainings: Training) -> None:
    """Name the data sets of a run for LLaMA-Factory, which finds files by dataset_info.json."""
    known = {}
    for training in trainings:
        columns = {"messages": "conversations", "images": "images"}
        if training.name != "stage1":
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
    if step.sft and _has_checkpoint(step.out) and can_resume(read_yaml(step.sft.config)):
        return step.command
    if step.out.exists():
        shutil.rmtree(step.out)
    return step.command


def _has_checkpoint(out: Path) -> bool:
    try:
        return checkpoint_to_resume("true", out) is not None
    except UserError:
        return False
