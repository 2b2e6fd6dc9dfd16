"""Stage 3 itself: train, save, merge the adapter, plot, write the card, and the summary last."""

import sys
import time
from pathlib import Path
from typing import Any

from trl import ModelConfig

from cot_reward.dpo.card import FinishedRun, model_card
from cot_reward.dpo.settings import DpoSettings
from cot_reward.dpo.steps import announce
from cot_reward.dpo.trainer import PairTrainer
from cot_reward.dpo.trl_settings import PairConfig
from cot_reward.plotting import dpo_plots, plot_log
from cot_reward.training import identity
from cot_reward.training.ending import FirstStep, run_training, save_result, write_summary

_PACKAGES = ("trl", "transformers", "torch", "accelerate", "peft", "datasets")


def train(
    trainer: PairTrainer,
    settings: DpoSettings,
    training: PairConfig,
    model_config: ModelConfig,
    skipped: int = 0,
) -> None:
    """Train, then write into `output_dir`: model, processor, state, curves, card, summary.json."""
    output = Path(str(training.output_dir))
    dataset: Any = trainer.train_dataset
    is_main = trainer.is_world_process_zero()
    if is_main:
        identity.claim(trainer.record, output, settings.overwrite_output_dir)
        announce(training, len(dataset))
    started = time.monotonic()
    first = FirstStep()
    trainer.add_callback(first)
    result = run_training(trainer, training, output)
    rows, steps = len(dataset), trainer.state.global_step
    train_seconds = result.metrics["train_runtime"]
    history = trainer.state.log_history
    card = ""
    if is_main:
        finished = FinishedRun(
            rows, skipped, steps, train_seconds, training.world_size, history, sys.argv
        )
        card = model_card(settings, training, model_config, finished)
    save_result(trainer, training, model_config, output, card, settings.merge_adapter)
    if not is_main:
        return
    _plot(history, training.loss_type, output / "curves")
    figures = {
        "stage": "dpo",
        "rows": {"in": rows + skipped, "out": rows, "skipped": {"bad": skipped} if skipped else {}},
        "reference_logps": trainer.reference_counts,
        "steps": steps,
        "seconds": round(time.monotonic() - started, 2),
        "train_seconds": round(train_seconds, 2),
        "seconds_per_step": round(train_seconds / max(steps - first.step, 1), 4),
    }
    write_summary(output, figures, history, (settings, model_config), training, _PACKAGES)
    print(
        f"{steps} steps in {train_seconds:.0f} s; model, card, curves and summary are in {output}"
    )


def _plot(history: list[dict[str, float]], loss_types: list[str], folder: Path) -> None:
    for plot in dpo_plots(history):
        title = f"{' + '.join(loss_types)}: {plot.title}"
        plot_log(history, plot.panels, folder / f"{plot.name}.png", title)
