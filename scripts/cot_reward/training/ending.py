"""The end of a training with TRL: what is saved, and what a stopped run says."""

from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from cot_reward.errors import UserError
from cot_reward.training.checkpoint import checkpoint_to_resume, step_of


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
