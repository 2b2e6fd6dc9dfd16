"""Flags and YAML of a trainer: our own settings together with all of TRL's.

Importing TRL takes seconds; `help_text` prints `--help` without it.
"""

import argparse
import functools
import sys
import warnings
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

from trl import ModelConfig, TrlParser

from cot_reward.errors import UserError, nearest
from cot_reward.settings import read_yaml
from cot_reward.training.help_text import HELP_ALL, help_text

# Flags that are not keys of the YAML file.
_COMMAND_LINE_ONLY = {"help", "help_all", "config"}


class _PrintHelp(argparse.Action):
    """Prints what its `const` function returns, and exits."""

    def __init__(self, option_strings: Sequence[str], dest: str, const: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, const=const, default=argparse.SUPPRESS)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print(self.const(), end="")
        parser.exit()


class _Parser(TrlParser):
    """A parser of our flags and TRL's that raises UserError instead of exiting."""

    def __init__(self, settings: type[Any], config: type[Any], description: str) -> None:
        kinds: Any = (settings, config, ModelConfig)
        super().__init__(kinds, allow_abbrev=False, add_help=False)
        self.add_argument("--config", type=Path)
        trl_name = _trl_name(config)
        for name, text in (
            ("--help", functools.partial(help_text, settings, trl_name, description)),
            (HELP_ALL, functools.partial(all_help_text, settings, config, description)),
        ):
            short = ["-h"] * (name == "--help")
            self.add_argument(*short, name, action=_PrintHelp, const=text)
        for member in fields(settings):
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


def _trl_name(config: type[Any]) -> str:
    """The name of the class of TRL that `config` is made from."""
    return next(cls.__name__ for cls in config.__mro__ if cls.__module__.startswith("trl."))


def all_help_text(settings: type[Any], config: type[Any], description: str = "") -> str:
    """What `--help-all` prints: our flags, then every flag of TRL's dataclasses."""
    kinds: Any = (config, ModelConfig)
    name = _trl_name(config)
    trl = TrlParser(
        kinds,
        description=f"Flags of TRL's {name} and ModelConfig:",
        usage=argparse.SUPPRESS,
        add_help=False,
        formatter_class=functools.partial(
            argparse.ArgumentDefaultsHelpFormatter, max_help_position=30, width=100
        ),
    )
    return f"{help_text(settings, name, description)}\n{trl.format_help()}"


def parse(
    settings: type[Any],
    config: type[Any],
    argv: Sequence[str] | None = None,
    description: str = "",
) -> tuple[Any, Any, ModelConfig]:
    """Our settings, TRL's and the model's, from `--config FILE.yaml` and flags; flags win.

    `description` heads the help texts. Raises UserError for an unknown key or flag, naming the
    nearest valid one, and for values that TRL or transformers refuse.
    """
    parser = _Parser(settings, config, description)
    arguments = list(sys.argv[1:] if argv is None else argv)
    path = _config_path(arguments)
    if path is not None:
        parser.set_defaults_with_config(**read_yaml(path, parser.yaml_keys))
    # The warning is about a key that TRL's own default sets; a user cannot act on it.
    warnings.filterwarnings("ignore", ".*gradient_checkpointing.*deprecated", FutureWarning)
    try:
        ours, training, model_config, _, unknown = parser.parse_args_into_dataclasses(
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
    return ours, training, model_config


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
