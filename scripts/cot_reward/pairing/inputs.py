"""The input files of a merge: what the patterns of its flags match, and which are refused."""

import glob
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from cot_reward.errors import UserError
from cot_reward.media.paths import media_prefix
from cot_reward.pairing.engine.database import WORK_FOLDER
from cot_reward.pairing.output import OUTPUT_FILES
from cot_reward.pairing.settings import MergeSettings


class HeldOutFile(NamedTuple):
    """`prefix` leads from the media root to what the paths in the file's raw rows start at."""

    path: Path
    prefix: str


@dataclass(frozen=True)
class Inputs:
    """The files of a merge; `prefix` is as in `HeldOutFile`, for published rows of both sides."""

    correct: list[Path]
    incorrect: list[Path]
    held_out: list[HeldOutFile]
    prefix: str


def find_inputs(settings: MergeSettings) -> Inputs:
    """The files that the settings name, each once.

    Raises UserError for a pattern without a match, for a file that the merge itself would write or
    remove, for a file on both sides, and for an image root outside the media root.
    """
    flags = ("correct", "incorrect", "exclude")
    files = {flag: [_expand(name, f"--{flag}") for name in getattr(settings, flag)]
             for flag in flags}  # fmt: skip
    for flag, found in files.items():
        for path in _flat(found):
            _check_is_no_output(path, f"--{flag}", settings.out)
    correct, incorrect = _flat(files["correct"]), _flat(files["incorrect"])
    for path in incorrect:
        if twice := next((other for other in correct if _same(path, other)), None):
            raise UserError(
                f"{twice} is a file of both --correct and --incorrect"
                + ("" if path == twice else f" (there as {path})")
                + "; give it to the side that its responses are on"
            )

    def prefix(root: Path | None) -> str:
        return media_prefix(root or settings.image_root or settings.media_root, settings.media_root)

    roots: Sequence[Path | None] = settings.exclude_image_root or [None]
    if len(roots) == 1:
        roots = [roots[0]] * len(settings.exclude)
    held_out = [
        HeldOutFile(path, prefix(root))
        for paths, root in zip(files["exclude"], roots, strict=True)
        for path in paths
    ]
    return Inputs(correct, incorrect, list(dict.fromkeys(held_out)), prefix(None))


def _flat(files: Iterable[Sequence[Path]]) -> list[Path]:
    return list(dict.fromkeys(path for paths in files for path in paths))


def _expand(pattern: str, flag: str) -> list[Path]:
    """The files that a pattern matches. Raises UserError for no match."""
    if "\0" in pattern:
        raise UserError(f"{flag} {pattern!r}: no name of a file")
    # The name of an existing file may look like a pattern.
    is_pattern = glob.has_magic(pattern) and not Path(pattern).exists()
    found = sorted(glob.glob(pattern, recursive=True)) if is_pattern else [pattern]
    if not found:
        raise UserError(f"{flag} {pattern}: no file matches")
    return list(map(Path, found))


def _same(first: Path, second: Path) -> bool:
    """Whether two names are one file, through links too; a file that is missing is no other one."""
    try:
        return os.path.samefile(first, second)
    except OSError:
        return first == second


def _check_is_no_output(path: Path, flag: str, out: Path) -> None:
    """Raise UserError for a file that the merge would replace or remove."""
    is_output = any(_same(path, out / name) for name in OUTPUT_FILES)
    if is_output or (out / WORK_FOLDER).resolve() in path.resolve().parents:
        raise UserError(
            f"{flag} {path}: a merge into --out {out} replaces or removes this file; move it to "
            "another folder, or choose another --out"
        )
