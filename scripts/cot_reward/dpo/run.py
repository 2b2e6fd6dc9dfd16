"""Stage 3 itself: train, save, merge, plot, and write the summary last."""

import dataclasses
import json
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import torch
from trl import ModelConfig
from trl.trainer.utils import create_model_from_path

from cot_reward.dpo.build import unsharded_models
from cot_reward.dpo.settings import PairConfig, ScriptArguments
from cot_reward.dpo.trainer import PairTrainer
from cot_reward.plotting import plot_history
from cot_reward.provenance import versions
from cot_reward.store import write_text_file

CURVES = {
    "loss": "loss",
    "rewards/chosen": "reward of the chosen",
    "rewards/rejected": "reward of the rejected",
    "rewards/accuracies": "share of pairs whose chosen has the higher reward",
    "rewards/accuracies_answer_1": "reward accuracy where the chosen answer is 1",
    "rewards/accuracies_answer_2": "reward accuracy where the chosen answer is 2",
    "rewards/margins": "reward of the chosen less that of the rejected",
}
_PACKAGES = ("trl", "transformers", "torch", "accelerate", "peft", "datasets")


def train(
    trainer: PairTrainer,
    script: ScriptArguments,
    training: PairConfig,
    model: ModelConfig,
    skipped: int = 0,
) -> None:
    """Train, then write into `output_dir`: model and processor, state, curves, summary.json."""
    output = Path(str(training.output_dir))
    main = trainer.is_world_process_zero()
    if main:
        # Its presence says that the run is complete, so an earlier run's must not stay.
        (output / "summary.json").unlink(missing_ok=True)
    started = time.monotonic()
    before = _steps_done(training)
    result = trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
    # The trainer turned the cache off; who generates with the saved model wants it.
    config: Any = trainer.accelerator.unwrap_model(trainer.model).config
    config.use_cache = True
    if trainer.is_fsdp_enabled:
        # Of shards transformers would write no model at all here.
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    # Gathers the weights on every rank, and writes on one.
    trainer.save_model(str(output / "adapter" if script.merge_adapter else output))
    trainer.save_state()
    if not main:
        return
    if script.merge_adapter:
        _merge(output, training, model, trainer.processing_class)
    history = trainer.state.log_history
    for key, title in CURVES.items():
        name = key.replace("/", "_") + ".png"
        title = f"{' + '.join(training.loss_type)}: {title}"
        plot_history(history, [key, f"eval_{key}"], output / "curves" / name, title)
    dataset: Any = trainer.train_dataset
    rows = len(dataset)
    steps = trainer.state.global_step
    seconds = result.metrics["train_runtime"]
    summary = {
        "stage": "dpo",
        "rows": {"in": rows + skipped, "out": rows, "skipped": {"bad": skipped} if skipped else {}},
        "reference_logps": trainer.reference_counts,
        "steps": steps,
        "seconds": round(time.monotonic() - started, 2),
        "train_seconds": round(seconds, 2),
        "seconds_per_step": round(seconds / max(steps - before, 1), 4),
        "metrics": _last_values(history),
        "settings": {
            **dataclasses.asdict(script),
            **dataclasses.asdict(model),
            **training.to_dict(),
        },
        "command": shlex.join([sys.executable, *sys.argv]),
        "versions": versions(*_PACKAGES),
    }
    write_text_file(output / "summary.json", json.dumps(summary, indent=2, default=str) + "\n")
    print(f"{steps} steps in {seconds:.0f} s; model, curves and summary are in {output}")


def _merge(output: Path, training: PairConfig, model: ModelConfig, processor: Any) -> None:
    """Write the model with the adapter of output/adapter merged into it.

    Into weights read anew: those in training may be shared out over processes, or quantized.
    """
    from peft import PeftModel

    # Of an earlier run into this folder: it would be loaded on top of the merged weights.
    for stale in [output / "adapter_config.json", *output.glob("adapter_model.*")]:
        stale.unlink(missing_ok=True)
    settings = {**(training.model_init_kwargs or {}), "device_map": None}
    with unsharded_models(), torch.no_grad():
        base = create_model_from_path(str(model.model_name_or_path), **settings)
        merged: Any = PeftModel.from_pretrained(base, str(output / "adapter")).merge_and_unload()
    merged.save_pretrained(output)
    processor.save_pretrained(output)


def _steps_done(training: PairConfig) -> int:
    """Optimizer steps that the checkpoint to resume from already has; 0 for a fresh run."""
    if not training.resume_from_checkpoint:
        return 0
    state = Path(training.resume_from_checkpoint, "trainer_state.json")
    steps: int = json.loads(state.read_text())["global_step"]
    return steps


def _last_values(history: list[dict[str, float]]) -> dict[str, float]:
    """The latest value of every key that was logged."""
    return {key: value for entry in history for key, value in entry.items()}
