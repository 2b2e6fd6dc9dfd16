"""Whether a training may start in its output folder: only a new one, or the same one again.

LLaMA-Factory goes on in any folder with a checkpoint: after new data or settings it trains nothing
and keeps the old result, and in full fine-tuning without DeepSpeed it writes the start's weights
over the trained ones, with exit code 0.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cot_reward.errors import UserError
from cot_reward.fingerprints import Fingerprints, is_model
from cot_reward.sft.config import can_resume
from cot_reward.store import write_json

RECORD = "trained_from.json"
# Keys that change no weight.
_OF_NO_WEIGHT = {
    "output_dir", "logging_steps", "plot_loss", "report_to", "save_strategy", "save_steps",
    "save_total_limit", "save_only_model", "overwrite_cache", "overwrite_output_dir",
    "preprocessing_num_workers", "dataloader_num_workers", "ddp_timeout", "run_name",
    "disable_tqdm", "model_name_or_path", "dataset", "dataset_dir",
}  # fmt: skip
_WEIGHTS = ("*.safetensors", "*.bin")


def made_from(config: Mapping[str, Any], files: Sequence[Path]) -> dict[str, Any]:
    """What a training's weights follow from: settings, data files and model, in words or hashes."""
    fingerprints = Fingerprints()
    model = Path(str(config["model_name_or_path"]))
    known = model.is_dir() and is_model(model)
    return {
        **{str(key): value for key, value in config.items() if key not in _OF_NO_WEIGHT},
        "model_name_or_path": [str(model), fingerprints.of(model) if known else ""],
        **{f"data {file}": fingerprints.of(file) for file in files},
    }


def admit(config: Mapping[str, Any], files: Sequence[Path]) -> str:
    """What will happen in the output folder, in words; records what the training is made from.

    Raises UserError when the folder holds a finished training, one of other data, model or
    settings, one that cannot be continued, or one without a record.
    """
    out, now = Path(config["output_dir"]), made_from(config, files)
    # As JSON gives it back.
    now = json.loads(json.dumps(now, default=str))
    record = out / RECORD
    checkpoints = sorted(out.glob("checkpoint-*"))
    weights = [file for pattern in _WEIGHTS for file in out.glob(pattern)]
    remedy = f"move it away (mv {out} {out}.old), or train into another output_dir"
    if not checkpoints and not weights:
        out.mkdir(parents=True, exist_ok=True)
        write_json(record, now)
        return "a new training"
    if not record.exists():
        raise UserError(
            f"{out} holds a training without a record of what it is from, and LLaMA-Factory would "
            f"go on in it; {remedy}"
        )
    try:
        before = dict(json.loads(record.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{record}: cannot be read: {error}; {remedy}") from None
    if changed := _changes(before, now):
        raise UserError(
            f"{out} holds a training from other inputs, and LLaMA-Factory would keep its result; "
            f"{remedy}:\n  " + "\n  ".join(changed)
        )
    if weights:
        raise UserError(f"{out} is trained from these very inputs already; to train anew, {remedy}")
    if not can_resume(config):
        raise UserError(
            f"{out} was stopped, and LLaMA-Factory cannot continue full fine-tuning without "
            f"DeepSpeed: it would end with the weights of the start; {remedy}"
        )
    return f"goes on at {checkpoints[-1].name}"


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    told = []
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) == now.get(name):
            continue
        if name.startswith("data "):
            there = "has changed" if name in before and name in now else "is in one of them only"
            told.append(f"{name.removeprefix('data ')} {there}")
        else:
            told.append(f"{name}: {before.get(name)!r:.80} there, {now.get(name)!r:.80} now")
    return told
