"""Checkpoints of TRL's trainers: known to be complete, and with weights that are really loaded."""

from pathlib import Path
from typing import Any

from accelerate.utils import is_peft_model
from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from cot_reward.training.checkpoint import RECORD_FILE, write_checkpoint_record
from cot_reward.training.identity import Record


class CheckpointKeeper(Trainer):
    """The part of a trainer that keeps and loads checkpoints; a base class before TRL's trainer.

    `record` is what the checkpoints belong to.
    """

    record: Record

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save a checkpoint, mark it as complete, and only then remove older ones."""
        output = Path(str(self.args.output_dir))
        folder = output / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if self.args.should_save:
            # The folder may be one that a killed run left.
            (folder / RECORD_FILE).unlink(missing_ok=True)
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        # Every process writes files of its own.
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            if not self.args.save_only_model:
                write_checkpoint_record(folder, self.record)
            best = self.state.best_model_checkpoint
            rotate_checkpoints(str(output), limit, best, use_mtime=True)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self._is_unsharded():
            self._load_weights(resume_from_checkpoint)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        if self._is_unsharded():
            self._load_weights(str(self.state.best_model_checkpoint))
        else:
            super()._load_best_model()

    def _is_unsharded(self) -> bool:
        """Whether a checkpoint has all weights, under the names that `save_pretrained` gives."""
        sharded = self.is_deepspeed_enabled or self.is_fsdp_enabled
        return not (sharded or is_peft_model(self.model))

    def _load_weights(self, folder: str) -> None:
        # transformers' Trainer looks for the names that the weights have in memory, does not find
        # them, warns, and goes on with the weights from before (huggingface/transformers issue
        # 43701).
        saved = type(self.model).from_pretrained(folder, dtype=self.model.dtype)
        self.model.load_state_dict(saved.state_dict())

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Nothing: `card` writes it. TRL's draft shows how to chat with a text model."""
