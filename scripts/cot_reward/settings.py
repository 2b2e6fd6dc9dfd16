"""Settings of a script: dataclasses that are filled from a YAML file and from flags.

A flag wins over YAML. An unknown flag or key is an error that names the nearest valid one. The
metadata of a field may hold:
    help: the text in --help
    aliases: further names of the flag and of the YAML key, which --help does not show
    positional: the value (of a list: the values) stands on the command line without a flag
    name: the name of flag and key, where Python does not allow it for the field

Two libraries were tried in place of this module: jsonargparse refuses `--data a.json b.json` and
reads `orders: off` as a boolean; tyro reads no YAML. Each takes 0.3 s to start, this module 0.1 s.
"""

import argparse
import contextlib
import dataclasses
import math
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml

from cot_reward.errors import UserError, nearest

Settings = TypeVar("Settings")


def setting(text: str, default: Any = None, **metadata: Any) -> Any:
    """A field of a dataclass with its help, a default (of a list: its entries) and metadata."""
    metadata = {"help": text, **metadata}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


# The names of values in --help.
_METAVARS = {int: "N", float: "X", Path: "PATH", str: "TEXT"}


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Shows each flag once, in 100 columns."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=100)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings:
            return super()._format_action_invocation(action)
        # The spelling with underscores and the aliases work, too, and would only take space.
        shown = [flag for flag in action.option_strings if flag in _shown_flags(action)]
        metavar = "" if action.nargs == 0 else " " + str(action.metavar)
        return ", ".join(shown) + metavar


def _shown_flags(action: argparse.Action) -> tuple[str, ...]:
    """The main name of a flag, with the negation of a boolean and the short form of --help."""
    long = [flag for flag in action.option_strings if flag.startswith("--")]
    if isinstance(action, argparse.BooleanOptionalAction):
        return long[0], "--no-" + long[0].removeprefix("--")
    return (*(flag for flag in action.option_strings if not flag.startswith("--")), long[0])


class Parser(argparse.ArgumentParser):
    """A parser that raises UserError; for an unknown flag it names the nearest valid one."""

    def error(self, message: str) -> NoReturn:
        prefix = "unrecognized arguments: "
        if message.startswith(prefix):
            flag = message.removeprefix(prefix).split()[0].split("=")[0]
            valid = [option for action in self._actions for option in action.option_strings]
            message = f"unknown flag '{flag}'.{nearest(flag, valid)}"
        raise UserError(f"{message}\nAll flags: {self.prog} --help")


def shipped(path: Path) -> Path:
    """A file of the project by its path there.

    The working directory comes first: it may have a file of its own by this name.
    """
    own = Path(__file__).parents[2] / path
    return own if own.exists() and not path.exists() else path


def read_yaml(path: Path, valid: Iterable[str] | None = None) -> dict[str, Any]:
    """The mapping in a YAML file. Raises UserError for bad YAML or keys outside `valid`.

    None for `valid`: any key (the file is another program's).
    """
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read as YAML: {error}") from None
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise UserError(f"{path}: must hold 'key: value' lines, not a {type(loaded).__name__}")
    known = list(loaded if valid is None else valid)
    for key in loaded:
        if key not in known:
            raise UserError(f"{path}: unknown key '{key}'.{nearest(str(key), known)}")
    return loaded


def _kind(field: Field[Any], hints: dict[str, Any]) -> tuple[Any, bool]:
    """The scalar type of a field, and whether the field is a list of this type."""
    hint = hints[field.name]
    # `Literal[...] | None` is a typing.Union, other types with None a types.UnionType.
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    if typing.get_origin(hint) in (list, tuple):
        return typing.get_args(hint)[0], True
    return hint, False


def _scalar(value: Any, kind: Any, where: str) -> Any:
    choices = typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else ()
    if choices:
        # YAML 1.1 reads a bare off or on as a boolean.
        word = {False: "off", True: "on"}.get(value) if isinstance(value, bool) else None
        if word in choices:
            return word
        if value in choices:
            return value
        raise UserError(f"{where}: {value!r} is not one of {', '.join(map(str, choices))}")
    if kind is float:
        # YAML reads 1e-6, which has no dot, as a string.
        if isinstance(value, int | float | str) and not isinstance(value, bool):
            with contextlib.suppress(ValueError, OverflowError):
                if math.isfinite(number := float(value)):
                    return number
        raise UserError(f"{where}: {value!r} is not a finite number")
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is str and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    raise UserError(f"{where}: {value!r} is not of type {kind.__name__}")


def _coerce(value: Any, field: Field[Any], hints: dict[str, Any], where: str) -> Any:
    kind, many = _kind(field, hints)
    if value is None:
        if type(None) in typing.get_args(hints[field.name]):
            return None
        raise UserError(f"{where}: a value is missing")
    if many:
        items = value if isinstance(value, list) else [value]
        return [_scalar(item, kind, where) for item in items]
    return _scalar(value, kind, where)


def _names(field: Field[Any]) -> tuple[str, ...]:
    """The main name of a field, then its aliases."""
    return field.metadata.get("name", field.name), *field.metadata.get("aliases", ())


def _flags(field: Field[Any]) -> list[str]:
    flags = []
    for name in _names(field):
        flags += ["--" + name.replace("_", "-"), "--" + name]
    return list(dict.fromkeys(flags))


def parser_for(
    classes: Sequence[type[Any]],
    description: str,
    config: Path | None = None,
    config_flag: str = "--config",
) -> Parser:
    """A parser with `config_flag`, and a flag for each field of the dataclasses.

    `config` is named in --help as the default of `config_flag`.

    The flag of a field is `--field-name`; `--field_name` works, too. A boolean takes `--x` and
    `--no-x`; a list takes several values.
    """
    parser = Parser(
        description=description.strip(),
        usage="%(prog)s [FLAG ...]",
        allow_abbrev=False,
        formatter_class=_HelpFormatter,
    )
    text = "YAML file of these settings" + (f" (default: {config})" if config else "")
    parser.add_argument(config_flag, dest="config", type=Path, metavar="PATH", help=text)
    for cls in classes:
        hints = typing.get_type_hints(cls)
        for field in fields(cls):
            _add_flag(parser, field, hints)
    return parser


def _add_flag(parser: Parser, field: Field[Any], hints: dict[str, Any]) -> None:
    kind, many = _kind(field, hints)
    options: dict[str, Any] = {"default": MISSING, "help": field.metadata.get("help", "")}
    if field.default not in (MISSING, None):
        options["help"] += f" (default: {field.default})"
    options["help"] = options["help"].replace("%", "%%")
    if kind is bool:
        options["action"] = argparse.BooleanOptionalAction
    else:
        options["metavar"] = _METAVARS.get(kind, "TEXT")
        if typing.get_origin(kind) is typing.Literal:
            options["metavar"] = "|".join(map(str, typing.get_args(kind)))
        if many:
            options |= {"nargs": "+", "action": "extend", "default": None}
            options["metavar"] += " ..."
    if field.metadata.get("positional"):
        options.pop("action", None)
        name = field.name.upper()
        parser.usage = f"%(prog)s {name}{' ...' if many else ''} [FLAG ...]"
        parser.add_argument(
            field.name, **options | {"nargs": "*" if many else "?", "metavar": name}
        )
    else:
        parser.add_argument(*_flags(field), dest=field.name, **options)


def parse(
    cls: type[Settings],
    description: str,
    *,
    config: Path | None = None,
    argv: Sequence[str] | None = None,
) -> Settings:
    """Settings from the YAML file `--config` (default: `config`) and from flags.

    Raises UserError, also for a ValueError of the dataclass.
    """
    (parsed,) = parse_several((cls,), description, config=config, argv=argv)
    settings: Settings = parsed
    return settings


def from_mapping(cls: type[Settings], values: Mapping[str, Any], where: str) -> Settings:
    """Settings from their fields, as a JSON file has them; other keys do not count.

    Raises UserError, also for a ValueError of the dataclass. `where` is for its message.
    """
    hints = typing.get_type_hints(cls)
    known = {
        field.name: _coerce(values[field.name], field, hints, f"{where}: {field.name}")
        for field in fields(cls)  # type: ignore[arg-type]
        if field.name in values
    }
    try:
        return cls(**known)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {error}") from None


def parse_several(
    classes: Sequence[type[Any]],
    description: str,
    *,
    config: Path | None = None,
    argv: Sequence[str] | None = None,
    config_flag: str = "--config",
    config_name: str = "",
) -> tuple[Any, ...]:
    """As `parse`, for several dataclasses that share one YAML file and one command line.

    `config_flag` names the YAML file; where it names a folder, the file in it is `config_name`.
    """
    given = vars(parser_for(classes, description, config, config_flag).parse_args(argv))
    path: Path | None = given.pop("config") or (config and shipped(config))
    if path and config_name and path.is_dir():
        path /= config_name
    every_field = [field for cls in classes for field in fields(cls)]
    from_yaml = _read_settings(path, every_field) if path else {}
    values = {cls: _values(cls, given, from_yaml, path) for cls in classes}
    try:
        return tuple(cls(**values[cls]) for cls in classes)
    except ValueError as error:
        raise UserError(str(error)) from None


def _values(
    cls: type[Any],
    given: Mapping[str, Any],
    from_yaml: Mapping[str, tuple[str, Any]],
    path: Path | None,
) -> dict[str, Any]:
    """The value of each field that a flag or the YAML file `path` sets. Raises UserError."""
    values: dict[str, Any] = {}
    hints = typing.get_type_hints(cls)
    for field in fields(cls):
        name = field.name
        kind, many = _kind(field, hints)
        if name in from_yaml:
            key, value = from_yaml[name]
            values[name] = _coerce(value, field, hints, f"{path}: {key}")
        value = given[name]
        is_positional = field.metadata.get("positional")
        flag = name.upper() if is_positional else f"--{name.replace('_', '-')}"
        if value is not MISSING and not (many and not value):
            if isinstance(value, str) or many:
                value = _from_text(value, kind, flag)
            values[name] = _coerce(value, field, hints, flag)
        required = field.default is MISSING and field.default_factory is MISSING
        if required and name not in values:
            raise UserError(f"{flag} is needed (or '{name}' in YAML)")
    return values


def _read_settings(path: Path, members: Sequence[Field[Any]]) -> Mapping[str, tuple[str, Any]]:
    """For each field that the YAML file sets: the key in the file (it may be an alias), the value.

    Raises UserError for a file that sets one field twice.
    """
    field_of_key = {name: field.name for field in members for name in _names(field)}
    found: dict[str, tuple[str, Any]] = {}
    for key, value in read_yaml(path, field_of_key).items():
        name = field_of_key[key]
        if name in found:
            raise UserError(f"{path}: '{found[name][0]}' and '{key}' are the same; keep one")
        found[name] = key, value
    return found


def _from_text(value: Any, kind: Any, where: str) -> Any:
    if isinstance(value, list):
        return [_from_text(item, kind, where) for item in value]
    try:
        return kind(value) if kind in (int, float) else value
    except ValueError:
        raise UserError(f"{where}: {value!r} is not of type {kind.__name__}") from None
