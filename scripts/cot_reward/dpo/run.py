"""Stage 3 itself: train, save, merge the adapter, plot, write the card, and the summary last."""

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

from trl import ModelConfig

from cot_reward.dpo.card import FinishedRun, model_card
from cot_reward.dpo.settings import DpoSettings
from cot_reward.dpo.trainer import PairTrainer
from cot_reward.dpo.trl_settings import PairConfig
from cot_reward.plotting import dpo_plots, plot_log
from cot_reward.provenance import versions
from cot_reward.store import write_text_file
from cot_reward.training import identity
from cot_reward.training.card_parts import masked_command
from cot_reward.training.ending import FirstStep, how_to_go_on, last_values, save_model
from cot_reward.training.lora import merge_adapter

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
    started = time.monotonic()
    first = FirstStep()
    trainer.add_callback(first)
    try:
        result = trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
    except KeyboardInterrupt:
        if is_main:
            print(how_to_go_on(output, trainer.state.global_step), file=sys.stderr)
        raise
    pairs, steps = sum(map(len, dataset["pairs"][:])), trainer.state.global_step
    train_seconds = result.metrics["train_runtime"]
    history = trainer.state.log_history
    if is_main:
        finished = FinishedRun(
            pairs, skipped, steps, train_seconds, training.world_size, history, sys.argv
        )
        card = model_card(settings, training, model_config, finished)
        # Before the model, since saving may upload the folder.
        write_text_file(output / "README.md", card)
    save_model(trainer, output / "adapter" if settings.merge_adapter else output)
    if not is_main:
        return
    if settings.merge_adapter:
        name, kwargs = str(model_config.model_name_or_path), training.model_init_kwargs or {}
        merge_adapter(output, name, kwargs)
        trainer.processing_class.save_pretrained(output)
    # PEFT, when it saves an adapter, replaces tags and base in the card.
    write_text_file(output / "README.md", card)
    _plot(history, training.loss_type, output / "curves")
    summary = {
        "stage": "dpo",
        "rows": {
            "in": pairs + skipped,
            "out": pairs,
            "skipped": {"bad": skipped} if skipped else {},
        },
        "reference_logps": trainer.reference_counts,
        "steps": steps,
        "seconds": round(time.monotonic() - started, 2),
        "train_seconds": round(train_seconds, 2),
        "seconds_per_step": round(train_seconds / max(steps - first.step, 1), 4),
        "metrics": last_values(history),
        "settings": {
            **dataclasses.asdict(settings),
            **dataclasses.asdict(model_config),
            **training.to_dict(),
        },
        "command": masked_command([sys.executable, *sys.argv]),
        "versions": versions(*_PACKAGES),
    }
    write_text_file(output / "summary.json", json.dumps(summary, indent=2, default=str) + "\n")
    print(
        f"{steps} steps in {train_seconds:.0f} s; model, card, curves and summary are in {output}"
    )


def _plot(history: list[dict[str, float]], loss_types: list[str], folder: Path) -> None:
    for plot in dpo_plots(history):
        title = f"{' + '.join(loss_types)}: {plot.title}"
        plot_log(history, plot.panels, folder / f"{plot.name}.png", title)
