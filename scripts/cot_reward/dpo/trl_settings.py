"""Stage 3's command line and YAML: `parse` reads our flags together with all of TRL's.

Importing TRL takes seconds; `settings` holds the flags of our own and `--help`.
"""

import argparse
import functools
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn

from transformers import IntervalStrategy
from trl import DPOConfig, ModelConfig, TrlParser

from cot_reward.dpo import flag_checks
from cot_reward.dpo.checkpoint import checkpoint_to_resume
from cot_reward.dpo.settings import HELP_ALL, DpoSettings, help_text
from cot_reward.errors import UserError, nearest
from cot_reward.settings import read_yaml

# Flags that are not keys of the YAML file.
_COMMAND_LINE_ONLY = {"help", "help_all", "config"}


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


class _PrintHelp(argparse.Action):
    """Prints what its `const` function returns, and exits."""

    def __init__(self, option_strings: Sequence[str], dest: str, const: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, const=const, default=argparse.SUPPRESS)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print(self.const(), end="")
        parser.exit()


class _Parser(TrlParser):
    """A parser of our flags and TRL's that raises UserError instead of exiting."""

    def __init__(self, description: str) -> None:
        kinds: Any = (DpoSettings, PairConfig, ModelConfig)
        super().__init__(kinds, allow_abbrev=False, add_help=False)
        self.add_argument("--config", type=Path)
        for name, text in (("--help", help_text), (HELP_ALL, all_help_text)):
            short = ["-h"] * (name == "--help")
            text_of_script = functools.partial(text, description)
            self.add_argument(*short, name, action=_PrintHelp, const=text_of_script)
        for member in fields(DpoSettings):
            # transformers adds `--no_x` only where the default is true; our help shows all.
            if member.default is False:
                flags = [f"--no_{member.name}", f"--no-{member.name.replace('_', '-')}"]
                self.add_argument(*flags, dest=member.name, action="store_false", default=False)

    def error(self, message: str) -> NoReturn:
        raise UserError(message)

    @property
    def yaml_keys(self) -> list[str]:
        return sorted({action.dest for action in self._actions} - _COMMAND_LINE_ONLY)

    @property
    def flags(self) -> list[str]:
        return [option for action in self._actions for option in action.option_strings]


def all_help_text(description: str = "") -> str:
    """What `--help-all` prints: our flags, then every flag of TRL's dataclasses."""
    kinds: Any = (PairConfig, ModelConfig)
    trl = TrlParser(
        kinds,
        description="Flags of TRL's DPOConfig and ModelConfig:",
        usage=argparse.SUPPRESS,
        add_help=False,
        formatter_class=functools.partial(
            argparse.ArgumentDefaultsHelpFormatter, max_help_position=30, width=100
        ),
    )
    return f"{help_text(description)}\n{trl.format_help()}"


def parse(
    argv: Sequence[str] | None = None, description: str = ""
) -> tuple[DpoSettings, PairConfig, ModelConfig]:
    """The settings from `--config FILE.yaml` and flags; flags win.

    `description` heads the help texts. Raises UserError for an unknown key or flag, naming the
    nearest valid one, and for values that TRL or transformers refuse.
    """
    parser = _Parser(description)
    arguments = list(sys.argv[1:] if argv is None else argv)
    path = _config_path(arguments)
    if path is not None:
        parser.set_defaults_with_config(**read_yaml(path, parser.yaml_keys))
    # The warning is about a key that TRL's own default sets; a user cannot act on it.
    warnings.filterwarnings("ignore", ".*gradient_checkpointing.*deprecated", FutureWarning)
    try:
        settings, training, model_config, _, unknown = parser.parse_args_into_dataclasses(
            arguments, return_remaining_strings=True, look_for_args_file=False
        )
    except (ValueError, ImportError) as error:
        raise UserError(" ".join(str(error).split())) from None
    if unknown:
        flag = unknown[0].split("=")[0]
        if not flag.startswith("-"):
            raise UserError(f"unexpected argument '{flag}'")
        raise UserError(f"unknown flag '{flag}'.{nearest(flag, parser.flags)}")
    if not model_config.model_name_or_path:
        raise UserError("--model_name_or_path is needed (or 'model_name_or_path' in YAML)")
    _default_eval_strategy(settings, training)
    flag_checks.check(settings, training, model_config)
    # With uneven batches some processes have no last batch, and the others wait for them for ever.
    # Even ones repeat pairs, and the trainer drops the repeated pairs: each counts once.
    accelerator_config: Any = training.accelerator_config
    accelerator_config.even_batches = True
    training.resume_from_checkpoint = checkpoint_to_resume(
        training.resume_from_checkpoint, Path(str(training.output_dir))
    )
    return settings, training, model_config


def _default_eval_strategy(settings: DpoSettings, training: PairConfig) -> None:
    if settings.eval_data_path and training.eval_strategy == "no":
        training.eval_strategy = IntervalStrategy.EPOCH


def _config_path(arguments: Sequence[str]) -> Path | None:
    """The file named by `--config FILE` or `--config=FILE`; the last one counts."""
    path = None
    for position, argument in enumerate(arguments):
        if argument == "--config":
            if position + 1 == len(arguments):
                raise UserError("argument --config: expected one argument")
            path = arguments[position + 1]
        elif argument.startswith("--config="):
            path = argument.removeprefix("--config=")
    return None if path is None else Path(path)
