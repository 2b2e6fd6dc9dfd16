"""Stage 3 itself: train, save, merge the adapter, plot, and write the summary last."""

import dataclasses
import json
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from trl import ModelConfig

from cot_reward.dpo.lora import merge_adapter
from cot_reward.dpo.settings import DpoSettings
from cot_reward.dpo.trainer import PairTrainer
from cot_reward.dpo.trl_settings import PairConfig
from cot_reward.plotting import plot_history
from cot_reward.provenance import versions
from cot_reward.store import write_text_file

# Logged metrics that are plotted, with the titles of their plots.
PLOTTED_METRICS = {
    "loss": "loss",
    "rewards/chosen": "reward of the chosen",
    "rewards/rejected": "reward of the rejected",
    "rewards/accuracies": "share of pairs whose chosen has the higher reward",
    "rewards/accuracies_answer_1": "reward accuracy where the chosen answer is 1",
    "rewards/accuracies_answer_2": "reward accuracy where the chosen answer is 2",
    "rewards/margins": "reward of the chosen less that of the rejected",
}
_PACKAGES = ("trl", "transformers", "torch", "accelerate", "peft", "datasets")


class _FirstStep(TrainerCallback):
    """Notes the optimizer steps that a resumed run already had; 0 for a fresh run."""

    step = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.step = state.global_step


def train(
    trainer: PairTrainer,
    settings: DpoSettings,
    training: PairConfig,
    model_config: ModelConfig,
    skipped: int = 0,
) -> None:
    """Train, then write into `output_dir`: model and processor, state, curves, summary.json."""
    output = Path(str(training.output_dir))
    is_main = trainer.is_world_process_zero()
    if is_main:
        # The summary says that a run is complete, so an earlier run's summary must go.
        (output / "summary.json").unlink(missing_ok=True)
    started = time.monotonic()
    first = _FirstStep()
    trainer.add_callback(first)
    result = trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
    _save(trainer, output / "adapter" if settings.merge_adapter else output)
    if not is_main:
        return
    if settings.merge_adapter:
        name, kwargs = str(model_config.model_name_or_path), training.model_init_kwargs or {}
        merge_adapter(output, name, kwargs)
        trainer.processing_class.save_pretrained(output)
    history = trainer.state.log_history
    _plot(history, training.loss_type, output / "curves")
    dataset: Any = trainer.train_dataset
    rows, steps = len(dataset), trainer.state.global_step
    train_seconds = result.metrics["train_runtime"]
    summary = {
        "stage": "dpo",
        "rows": {"in": rows + skipped, "out": rows, "skipped": {"bad": skipped} if skipped else {}},
        "reference_logps": trainer.reference_counts,
        "steps": steps,
        "seconds": round(time.monotonic() - started, 2),
        "train_seconds": round(train_seconds, 2),
        "seconds_per_step": round(train_seconds / max(steps - first.step, 1), 4),
        "metrics": _last_values(history),
        "settings": {
            **dataclasses.asdict(settings),
            **dataclasses.asdict(model_config),
            **training.to_dict(),
        },
        "command": shlex.join([sys.executable, *sys.argv]),
        "versions": versions(*_PACKAGES),
    }
    write_text_file(output / "summary.json", json.dumps(summary, indent=2, default=str) + "\n")
    print(f"{steps} steps in {train_seconds:.0f} s; model, curves and summary are in {output}")


def _save(trainer: PairTrainer, folder: Path) -> None:
    """Write model, processor and the Trainer's state; every process must call it."""
    # Training turned the cache off, and the saved model is used for generation.
    config: Any = trainer.accelerator.unwrap_model(trainer.model).config
    config.use_cache = True
    if trainer.is_fsdp_enabled:
        # With a sharded state dict transformers would save no model here.
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    # Gathers the weights on every process, and writes on one.
    trainer.save_model(str(folder))
    trainer.save_state()


def _plot(history: list[dict[str, float]], loss_types: list[str], folder: Path) -> None:
    for key, title in PLOTTED_METRICS.items():
        path = folder / (key.replace("/", "_") + ".png")
        plot_history(history, [key, f"eval_{key}"], path, f"{' + '.join(loss_types)}: {title}")


def _last_values(history: list[dict[str, float]]) -> dict[str, float]:
    """The latest value of every key that was logged."""
    return {key: value for entry in history for key, value in entry.items()}
