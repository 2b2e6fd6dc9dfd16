"""The input files of a merge: what the patterns of its flags match, and which are refused."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cot_reward.errors import UserError
from cot_reward.media.paths import media_prefix
from cot_reward.pairing.engine.database import WORK_FOLDER
from cot_reward.pairing.output import OUTPUT_FILES
from cot_reward.pairing.settings import MergeSettings
from cot_reward.rows.file_flags import HeldOutFile, held_out_files, matching_files


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
    correct = _files(settings.correct, "--correct")
    incorrect = _files(settings.incorrect, "--incorrect")
    root = settings.image_root or settings.media_root
    held_out = held_out_files(
        settings.exclude, settings.exclude_image_root, root, settings.media_root
    )
    excluded = [file.path for file in held_out]
    for flag, files in (
        ("--correct", correct), ("--incorrect", incorrect), ("--exclude", excluded)
    ):  # fmt: skip
        for path in files:
            _check_is_no_output(path, flag, settings.out)
    for path in incorrect:
        if twice := next((other for other in correct if _same(path, other)), None):
            raise UserError(
                f"{twice} is a file of both --correct and --incorrect"
                + ("" if path == twice else f" (there as {path})")
                + "; give it to the side that its responses are on"
            )

    return Inputs(correct, incorrect, held_out, media_prefix(root, settings.media_root))


def _files(patterns: Sequence[str], flag: str) -> list[Path]:
    return list(dict.fromkeys(path for name in patterns for path in matching_files(name, flag)))


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
