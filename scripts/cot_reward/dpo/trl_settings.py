"""Stage 3's command line and YAML: `parse` reads our flags together with all of TRL's.

Importing TRL takes seconds; `settings` holds the flags of our own and `--help`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import IntervalStrategy
from trl import DPOConfig, ModelConfig

from cot_reward.dpo import flag_checks
from cot_reward.dpo.settings import DpoSettings
from cot_reward.training import command_line
from cot_reward.training.checkpoint import checkpoint_to_resume
from cot_reward.training.distributed import on_every_machine, same_on_every_machine


@dataclass
class PairConfig(DPOConfig):
    """TRL's DPOConfig with three other defaults.

    `max_length`: no chain of thought is cut. The answer stands at a text's end, so TRL's bound of
    1,024 tokens would silently train on pairs that no longer differ in the answer.
    `metric_for_best_model`: the best checkpoint has the best held-out reward accuracy.
    `report_to`: TensorBoard's files are written.
    """

    max_length: int | None = field(
        default=None,
        metadata={"help": "Rows with more tokens are bad rows, since they would be cut."},
    )
    # The order matters: transformers' parser takes the flag's type from the second member.
    report_to: None | str | list[str] = field(  # noqa: RUF036
        default="tensorboard",
        metadata={"help": "Where the log goes: tensorboard, wandb, both, or none."},
    )
    metric_for_best_model: str | None = field(
        default="eval_rewards/accuracies",
        metadata={"help": "What --load_best_model_at_end goes by; transformers' default: loss."},
    )


def parse(
    argv: Sequence[str] | None = None, description: str = ""
) -> tuple[DpoSettings, PairConfig, ModelConfig]:
    """The settings from `--config FILE.yaml` and flags; flags win.

    Raises UserError as `command_line.parse`, and for flags that cannot be meant.
    """
    settings, training, model_config = command_line.parse(
        DpoSettings, PairConfig, argv, description
    )
    _default_eval_strategy(settings, training)
    on_every_machine(lambda: flag_checks.check(settings, training, model_config))
    # With uneven batches some processes have no last batch, and the others wait for them for ever.
    # Even ones repeat pairs, and the trainer drops the repeated pairs: each counts once.
    accelerator_config: Any = training.accelerator_config
    accelerator_config.even_batches = True
    resumed, output = training.resume_from_checkpoint, Path(str(training.output_dir))
    training.resume_from_checkpoint = same_on_every_machine(
        "--resume_from_checkpoint", lambda: checkpoint_to_resume(resumed, output)
    )
    return settings, training, model_config


def _default_eval_strategy(settings: DpoSettings, training: PairConfig) -> None:
    if settings.eval_data_path and training.eval_strategy == "no":
        training.eval_strategy = IntervalStrategy.EPOCH
