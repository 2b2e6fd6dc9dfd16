"""Settings of a stage script: a dataclass, filled from YAML and then from flags.

Flags win over YAML, and unknown keys of either are errors that name the nearest valid one.
"""

import argparse
import contextlib
import math
import types
import typing
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml

from cot_reward.errors import UserError, nearest

Settings = TypeVar("Settings")


class Parser(argparse.ArgumentParser):
    """Raises UserError for bad arguments, with the nearest valid flag for an unknown one."""

    def error(self, message: str) -> NoReturn:
        prefix = "unrecognized arguments: "
        if message.startswith(prefix):
            flag = message.removeprefix(prefix).split()[0].split("=")[0]
            valid = [option for action in self._actions for option in action.option_strings]
            message = f"unknown flag '{flag}'.{nearest(flag, valid)}"
        raise UserError(f"{message}\nAll flags: {self.prog} --help")


def read_yaml(path: Path, valid: Iterable[str]) -> dict[str, Any]:
    """The mapping in a YAML file. Raises UserError for bad YAML or keys outside `valid`."""
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
    valid = list(valid)
    for key in loaded:
        if key not in valid:
            raise UserError(f"{path}: unknown key '{key}'.{nearest(str(key), valid)}")
    return loaded


def _kind(field: Field[Any], hints: dict[str, Any]) -> tuple[Any, bool]:
    """The scalar type of a field, and whether it is a list of them."""
    hint = hints[field.name]
    if isinstance(hint, types.UnionType):
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    if typing.get_origin(hint) in (list, tuple):
        return typing.get_args(hint)[0], True
    return hint, False


def _scalar(value: Any, kind: Any, where: str) -> Any:
    choices = typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else ()
    if choices:
        # YAML 1.1 reads a bare off as a boolean.
        if value is False and "off" in choices:
            return "off"
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


def parse(
    cls: type[Settings],
    description: str,
    *,
    config: Path | None = None,
    argv: Sequence[str] | None = None,
) -> Settings:
    """Settings from `--config` (default: `config`) and flags; raises UserError.

    A field becomes the flag `--field-name` (`--field_name` works too); its help is the metadata
    entry "help". Booleans take `--x` and `--no-x`; lists take several values.
    """
    hints = typing.get_type_hints(cls)
    members = fields(cls)  # type: ignore[arg-type]
    parser = Parser(
        description=description,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, default=config, help="YAML file of these settings")
    for field in members:
        kind, many = _kind(field, hints)
        dashed = "--" + field.name.replace("_", "-")
        flags = [dashed] if "_" not in field.name else [dashed, "--" + field.name]
        options: dict[str, Any] = {
            "dest": field.name,
            "default": MISSING,
            "help": field.metadata.get("help", ""),
        }
        if field.default is not MISSING:
            options["help"] += f" (default: {field.default})"
        options["help"] = options["help"].replace("%", "%%")
        if kind is bool:
            options["action"] = argparse.BooleanOptionalAction
        else:
            options["metavar"] = field.name.upper()
            if typing.get_origin(kind) is typing.Literal:
                options["metavar"] = "|".join(map(str, typing.get_args(kind)))
            if many:
                options |= {"nargs": "+", "action": "extend"}
        parser.add_argument(*flags, **options)
        if many:
            parser.set_defaults(**{field.name: None})
    given = vars(parser.parse_args(argv))
    path: Path | None = given.pop("config")
    values: dict[str, Any] = {}
    by_name = {field.name: field for field in members}
    if path is not None:
        for key, value in read_yaml(path, by_name).items():
            values[key] = _coerce(value, by_name[key], hints, f"{path}: {key}")
    for key, value in given.items():
        kind, many = _kind(by_name[key], hints)
        if value is MISSING or (many and value is None):
            continue
        where = f"--{key.replace('_', '-')}"
        if isinstance(value, str) or many:
            value = _from_text(value, kind, where)
        values[key] = _coerce(value, by_name[key], hints, where)
    for field in members:
        required = field.default is MISSING and field.default_factory is MISSING
        if required and field.name not in values:
            raise UserError(
                f"--{field.name.replace('_', '-')} is needed (or '{field.name}' in YAML)"
            )
    try:
        return cls(**values)
    except ValueError as error:
        raise UserError(str(error)) from None


def _from_text(value: Any, kind: Any, where: str) -> Any:
    if isinstance(value, list):
        return [_from_text(item, kind, where) for item in value]
    try:
        return kind(value) if kind in (int, float) else value
    except ValueError:
        raise UserError(f"{where}: {value!r} is not of type {kind.__name__}") from None
