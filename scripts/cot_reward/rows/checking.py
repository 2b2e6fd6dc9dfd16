"""Checks of training rows and their media, before a training run relies on them.

LLaMA-Factory only warns, once, when an image is missing, and skips rows that it cannot read.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cot_reward import records
from cot_reward.errors import UserError
from cot_reward.media.images import inspect_image
from cot_reward.media.paths import MediaError, resolve
from cot_reward.records import FOREIGN_PLACEHOLDER, PLACEHOLDERS


@dataclass(frozen=True, order=True)
class Problem:
    """One finding. `row` counts from 1: the line of a JSONL file, the entry of a JSON list."""

    file: int
    row: int
    where: str
    reason: str
    message: str


@dataclass
class Report:
    """What was checked, and the problems in the order of the files."""

    rows: int = 0
    images: int = 0
    videos: int = 0
    problems: list[Problem] = field(default_factory=list)

    @property
    def counts(self) -> dict[str, int]:
        """Problems per reason, the most frequent first."""
        return dict(Counter(problem.reason for problem in self.problems).most_common())


class _RowError(Exception):
    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def _entries(path: Path) -> Iterator[tuple[int, str, Any]]:
    """Row number, place and parsed row of each row; a _RowError stands for what cannot be read.

    A file that starts with `[` is one JSON list, any other has one object per line.
    """
    with path.open("rb") as stream:
        head = stream.read(1)
        while head.isspace():
            head = stream.read(1)
        stream.seek(0)
        if head == b"[":
            try:
                rows = json.loads(stream.read())
            except json.JSONDecodeError as error:
                message = f"not valid JSON ({error.msg}, column {error.colno}); mend the file"
                yield error.lineno, f"{path}:{error.lineno}", _RowError("malformed", message)
            except UnicodeDecodeError as error:
                yield 1, f"{path}", _RowError("malformed", f"not UTF-8 ({error}); convert the file")
            else:
                for number, row in enumerate(rows, 1):
                    yield number, f"{path}: row {number}", row
            return
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                yield number, where, json.loads(line)
            except (ValueError, RecursionError) as error:  # bad JSON, bad UTF-8, nested too deep
                message = f"not valid JSON ({error}); mend the line or delete it"
                yield number, where, _RowError("malformed", message)


def _texts(row: Mapping[str, Any]) -> tuple[str, list[str]]:
    """The prompt and the completions of an SFT or a DPO row."""
    if "conversations" in row:
        try:
            prompt, completion = records.turns(row)
        except ValueError as error:
            raise _RowError("fields", f"{error}; mend the row") from None
        return prompt, [completion]
    names = ("problem", "chosen", "rejected")
    for name in names:
        if not isinstance(row.get(name), str):
            found = ", ".join(map(repr, row)) or "no key"
            raise _RowError(
                "fields",
                "needs 'conversations' (SFT), or 'problem', 'chosen' and 'rejected' as strings "
                f"(DPO): no string in {name!r} among {found}",
            )
    return row["problem"], [row["chosen"], row["rejected"]]


def check_row(row: Any) -> dict[str, list[str]]:
    """The media paths of a row, under "images" and "videos". Raises _RowError."""
    if not isinstance(row, Mapping):
        raise _RowError("fields", f"a row must be an object, not {type(row).__name__}; mend it")
    kinds = records.ROW_FIELDS if "conversations" in row else records.PAIR_FIELDS
    for name, kind in kinds.items():
        # A null, too, is wrong: `datasets` takes a column's type from its first rows.
        if name in row and (not isinstance(row[name], kind) or isinstance(row[name], bool)):
            raise _RowError(
                "fields", f"{name!r} must be of type {kind.__name__}, is {row[name]!r:.60}"
            )
    prompt, completions = _texts(row)
    if not prompt.strip() or not all(text.strip() for text in completions):
        raise _RowError("fields", "a prompt or completion is empty; leave the row out")
    found = {}
    for name, placeholder in PLACEHOLDERS.items():
        paths = row.get(name, [])
        if not all(isinstance(path, str) and path for path in paths):
            raise _RowError("fields", f"{name!r} must be a list of paths, is {paths!r:.60}")
        count = prompt.count(placeholder)
        if count != len(paths):
            raise _RowError(
                "placeholders",
                f"{count} {placeholder} in the prompt, but {len(paths)} in {name!r}: "
                "each medium needs one placeholder",
            )
        found[name] = paths
    for placeholder in PLACEHOLDERS.values():
        if any(placeholder in text for text in completions):
            raise _RowError("placeholders", f"{placeholder} in a completion; leave the row out")
    if any(FOREIGN_PLACEHOLDER in text for text in [prompt, *completions]):
        raise _RowError("placeholders", f"{FOREIGN_PLACEHOLDER} is not supported")
    return found


def _check_image(path: Path) -> MediaError | None:
    try:
        inspect_image(path)
    except MediaError as error:
        return error
    return None


def _check_video(path: Path) -> MediaError | None:
    try:
        empty = not path.stat().st_size
    except OSError as error:
        return MediaError(f"{path}: cannot be read ({error.strerror})", "missing")
    if empty:
        return MediaError(f"{path}: empty (0 bytes); fetch the file again", "empty")
    return None


def check_files(files: Sequence[Path], root: Path, workers: int) -> Report:
    """Check every row of the files, and every medium below `root` that they name, once each.

    Images are decoded in `workers` threads. Of videos it is checked that they exist below the root
    and are not empty; they are not decoded.
    """
    report = Report()
    # Where a path is used: (file, row, place).
    used: dict[tuple[str, str], list[tuple[int, int, str]]] = {}
    for index, path in enumerate(files):
        before = report.rows
        for number, where, row in tqdm(_entries(path), path.name, unit=" rows", disable=None):
            report.rows += 1
            try:
                if isinstance(row, _RowError):
                    raise row
                for name, paths in check_row(row).items():
                    for medium in dict.fromkeys(paths):
                        used.setdefault((name, medium), []).append((index, number, where))
            except _RowError as error:
                report.problems.append(Problem(index, number, where, error.reason, str(error)))
        if report.rows == before:
            message = "no rows; run the stage that writes it"
            report.problems.append(Problem(index, 0, str(path), "empty_file", message))

    def note(places: list[tuple[int, int, str]], error: MediaError) -> None:
        report.problems += [Problem(*place, error.reason, str(error)) for place in places]

    # Two spellings of one path are one file, and are decoded once.
    real: dict[tuple[str, Path], list[tuple[int, int, str]]] = {}
    for (name, medium), places in used.items():
        try:
            real.setdefault((name, resolve(medium, root)), []).extend(places)
        except MediaError as error:
            note(places, error)
    images = [path for name, path in real if name == "images"]
    videos = [path for name, path in real if name == "videos"]
    report.images, report.videos = len(images), len(videos)
    with ThreadPoolExecutor(workers) as pool:
        results = pool.map(_check_image, images)
        decoded = tqdm(results, "images", len(images), unit=" images", disable=None)
        for path, problem in zip(images, decoded, strict=True):
            if problem:
                note(real["images", path], problem)
    for path in videos:
        if problem := _check_video(path):
            note(real["videos", path], problem)
    report.problems.sort()
    return report


def report_problems(files: Sequence[Path], root: Path, workers: int, show: int) -> int:
    """Check the files and print what is wrong, the first `show` one by one; returns the exit code.

    Raises UserError when a file or the root is not there.
    """
    for path in files:
        if not path.is_file():
            raise UserError(f"{path}: no such file")
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; name the media root with --media-root")
    try:
        found = check_files(files, root, workers)
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read: {error.strerror}") from None
    print(f"{found.rows:,} rows, {found.images:,} images, {found.videos:,} videos: ", end="")
    if not found.problems:
        print("clean")
        return 0
    print(f"{len(found.problems):,} problems")
    for reason, count in found.counts.items():
        print(f"{count:>8,}  {reason}")
    shown = found.problems[: max(show, 0)]
    print(f"The first {len(shown)}:" if len(shown) < len(found.problems) else "They are:")
    for problem in shown:
        print(f"  {problem.where}: {problem.reason}: {problem.message}")
    return 1
