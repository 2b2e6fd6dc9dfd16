"""GRPO's command line and YAML: our settings together with all of TRL's."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from transformers import IntervalStrategy
from trl import GRPOConfig, ModelConfig

from cot_reward.grpo import flag_checks
from cot_reward.grpo.settings import GrpoSettings
from cot_reward.training import command_line
from cot_reward.training.checkpoint import checkpoint_to_resume
from cot_reward.training.distributed import on_every_machine, same_on_every_machine


@dataclass
class JudgedConfig(GRPOConfig):
    """TRL's GRPOConfig with three other defaults.

    `max_completion_length`: a chain of thought has its answer at its end, and a text that is cut
    has reward 0. TRL's bound of 512 tokens would cut real ones.
    `metric_for_best_model`: the best checkpoint has the best held-out reward of the judge.
    `report_to`: TensorBoard's files are written.
    """

    max_completion_length: int | None = field(
        default=2048, metadata={"help": "Maximum length of a sampled text, in tokens."}
    )
    # The order matters: transformers' parser takes the flag's type from the second member.
    report_to: None | str | list[str] = field(  # noqa: RUF036
        default="tensorboard",
        metadata={"help": "Where the log goes: tensorboard, wandb, both, or none."},
    )
    metric_for_best_model: str | None = field(
        default="eval_rewards/judged/mean",
        metadata={"help": "What --load_best_model_at_end goes by; transformers' default: loss."},
    )


def parse(
    argv: Sequence[str] | None = None, description: str = ""
) -> tuple[GrpoSettings, JudgedConfig, ModelConfig]:
    """The settings from `--config FILE.yaml` and flags; flags win.

    Raises UserError as `command_line.parse`, and for flags that cannot be meant.
    """
    settings, training, model_config = command_line.parse(
        GrpoSettings, JudgedConfig, argv, description
    )
    if settings.eval_data_path and training.eval_strategy == "no":
        training.eval_strategy = IntervalStrategy.EPOCH
    on_every_machine(lambda: flag_checks.check(settings, training, model_config))
    resumed, output = training.resume_from_checkpoint, Path(str(training.output_dir))
    training.resume_from_checkpoint = same_on_every_machine(
        "--resume_from_checkpoint", lambda: checkpoint_to_resume(resumed, output)
    )
    return settings, training, model_config
