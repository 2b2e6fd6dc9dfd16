"""The end of a training with TRL: what is saved, and what a stopped run says."""

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from trl import ModelConfig

from cot_reward.errors import UserError
from cot_reward.provenance import versions
from cot_reward.store import write_text_file
from cot_reward.training.card_parts import masked_command
from cot_reward.training.checkpoint import checkpoint_to_resume, step_of
from cot_reward.training.lora import merge_adapter


class FirstStep(TrainerCallback):
    """Notes the optimizer steps that a resumed run already had; 0 for a fresh run."""

    step = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.step = state.global_step


def how_to_go_on(output: Path, step: int) -> str:
    """What to do after a run was stopped behind a step."""
    try:
        kept = step_of(Path(str(checkpoint_to_resume("true", output))))
    except UserError:
        return (
            f"stopped behind step {step}; no checkpoint is kept, so the same command begins anew "
            "(--save_strategy steps --save_steps 0.2 keeps some)"
        )
    return (
        f"stopped behind step {step}; the same command with --resume_from_checkpoint true goes on "
        f"from step {kept}"
    )


def run_training(trainer: Any, training: Any, output: Path) -> Any:
    """Train, or go on with a checkpoint; a run that Ctrl-C stops says how to go on."""
    try:
        return trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
    except KeyboardInterrupt:
        if trainer.is_world_process_zero():
            print(how_to_go_on(output, trainer.state.global_step), file=sys.stderr)
        raise


def save_result(
    trainer: Any, training: Any, model_config: ModelConfig, output: Path, card: str, merge: bool
) -> None:
    """Write card, model, processor and state, and merge an adapter; every process must call it.

    `card` is read on the main process alone.
    """
    is_main = trainer.is_world_process_zero()
    if is_main:
        # Before the model, since saving may upload the folder.
        write_text_file(output / "README.md", card)
    save_model(trainer, output / "adapter" if merge else output)
    if not is_main:
        return
    if merge:
        name, kwargs = str(model_config.model_name_or_path), training.model_init_kwargs or {}
        merge_adapter(output, name, kwargs)
        trainer.processing_class.save_pretrained(output)
    # PEFT, when it saves an adapter, replaces tags and base in the card.
    write_text_file(output / "README.md", card)


def write_summary(
    output: Path,
    figures: Mapping[str, Any],
    history: list[dict[str, float]],
    settings: Sequence[Any],
    training: Any,
    packages: Sequence[str],
) -> None:
    """Write summary.json: `figures`, last metrics, settings (dataclasses), command, versions."""
    values: dict[str, Any] = {}
    for part in settings:
        values |= dataclasses.asdict(part)
    summary = {
        **figures,
        "metrics": last_values(history),
        "settings": values | training.to_dict(),
        "command": masked_command([sys.executable, *sys.argv]),
        "versions": versions(*packages),
    }
    write_text_file(output / "summary.json", json.dumps(summary, indent=2, default=str) + "\n")


def save_model(trainer: Any, folder: Path) -> None:
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


def last_values(history: list[dict[str, float]]) -> dict[str, float]:
    """The latest value of every key that was logged."""
    return {key: value for entry in history for key, value in entry.items()}
