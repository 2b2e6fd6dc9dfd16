"""Checks of row files and their media, before a training run relies on them (`check_rows.py`).

LLaMA-Factory only warns, once, when an image is missing, and skips rows that it cannot read.
"""

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from cot_reward.errors import UserError
from cot_reward.media.images import inspect_image
from cot_reward.media.paths import LFS_POINTER, MediaError, lfs_error, resolve
from cot_reward.rows.held_out import captions_of
from cot_reward.rows.held_out_check import HeldOutCheck
from cot_reward.rows.preferences import PairReader, is_preference
from cot_reward.rows.reading import NOT_AN_OBJECT, BrokenFileError, Row, read_rows, row_noun
from cot_reward.rows.validation import RowError, check_pair_row, check_row

# Reasons of media that say what to do about all of a file's media alike.
_CAUSES = ("lfs_pointer", "metadata")


@dataclass(frozen=True, order=True)
class Problem:
    """One finding. `row` counts from 1: the line of a JSONL file, the entry of a JSON list."""

    file: int
    row: int
    where: str
    reason: str
    message: str


@dataclass
class Findings:
    """What was checked, and the problems in the order of the files."""

    rows: int = 0
    images: int = 0
    videos: int = 0
    problems: list[Problem] = field(default_factory=list)

    @property
    def counts(self) -> dict[str, int]:
        """Problems per reason, the most frequent first."""
        return dict(Counter(problem.reason for problem in self.problems).most_common())


def _rows_with_places(path: Path) -> Iterator[tuple[int, str, Row]]:
    """Number, place and content of each row. Raises BrokenFileError where reading has to end."""
    as_lines = row_noun(path) == "line"
    for number, row in read_rows(path, may_be_empty=True):
        yield number, f"{path}:{number}" if as_lines else f"{path}: row {number}", row


def _media_of(number: int, row: Row, as_pair: PairReader) -> dict[str, list[str]]:
    """The media paths of a row, by column. Raises RowError."""
    if not isinstance(row, ValueError):
        return check_pair_row(as_pair(number, row)) if is_preference(row) else check_row(row)
    message = str(row)
    if message == NOT_AN_OBJECT:
        raise RowError("a row must be an object; mend it, or delete it")
    raise RowError(f"{message}; mend the line, or delete it", "malformed")


def _check_image(path: Path) -> MediaError | None:
    try:
        inspect_image(path)
    except MediaError as error:
        return error
    return None


def _check_video(path: Path) -> MediaError | None:
    try:
        with path.open("rb") as file:
            beginning = file.read(len(LFS_POINTER))
    except OSError as error:
        return MediaError(f"{path}: cannot be read ({error.strerror})", "missing")
    if beginning == LFS_POINTER:
        return lfs_error(path)
    if not beginning:
        return MediaError(f"{path}: empty (0 bytes); fetch the file again", "empty")
    return None


def check_files(
    files: Sequence[Path], root: Path, workers: int, held_out: HeldOutCheck | None = None
) -> Findings:
    """Check every row of the files, and every medium below `root` that they name, once each.

    Images are decoded in `workers` threads. A video must exist below the root and not be empty; it
    is not decoded. With `held_out` a row about a held-out comparison is a problem. Raises UserError
    for a file that cannot be opened.
    """
    findings = Findings()
    # Where a path is used: (file, row, place).
    used: dict[tuple[str, str], list[tuple[int, int, str]]] = {}
    for index, path in enumerate(files):
        rows_before, as_pair = findings.rows, PairReader()
        rows = tqdm(_rows_with_places(path), path.name, unit=" rows", disable=None)
        captions = captions_of(path)
        try:
            for number, where, row in rows:
                findings.rows += 1
                try:
                    for name, paths in _media_of(number, row, as_pair).items():
                        for medium in dict.fromkeys(paths):
                            used.setdefault((name, medium), []).append((index, number, where))
                    if held_out and isinstance(row, dict):
                        held_out.check(row, captions)
                except RowError as error:
                    problem = Problem(index, number, where, error.reason, str(error))
                    findings.problems.append(problem)
        except BrokenFileError as error:
            problem = Problem(index, error.line, error.where, "malformed", error.why)
            findings.problems.append(problem)
            continue
        if findings.rows == rows_before:
            message = "no rows; run the stage that writes it"
            findings.problems.append(Problem(index, 0, str(path), "empty_file", message))

    for name, why in held_out.unproved() if held_out else ():
        problem = Problem(len(files), 0, f"--exclude {name}", "held_out", why)
        findings.problems.append(problem)

    def note(places: list[tuple[int, int, str]], error: MediaError) -> None:
        findings.problems += [Problem(*place, error.reason, str(error)) for place in places]

    # Two spellings of one path are one file, which is decoded once.
    real: dict[tuple[str, Path], list[tuple[int, int, str]]] = {}
    for (name, medium), places in used.items():
        try:
            real.setdefault((name, resolve(medium, root)), []).extend(places)
        except MediaError as error:
            note(places, error)
    images = [path for name, path in real if name == "images"]
    videos = [path for name, path in real if name == "videos"]
    findings.images, findings.videos = len(images), len(videos)
    with ThreadPoolExecutor(workers) as pool:
        results = pool.map(_check_image, images)
        checked = tqdm(results, "images", len(images), unit=" images", disable=None)
        for path, fault in zip(images, checked, strict=True):
            if fault:
                note(real["images", path], fault)
    for path in videos:
        if fault := _check_video(path):
            note(real["videos", path], fault)
    findings.problems.sort()
    return findings


def report_problems(
    files: Sequence[Path],
    root: Path,
    workers: int,
    show: int,
    exclude: Sequence[str] = (),
    exclude_roots: Sequence[Path] = (),
) -> int:
    """Check the files, print the first `show` problems that differ; returns the exit code.

    `exclude` and `exclude_roots`: held-out files that the rows must be free of, as in
    `file_flags.held_out_files`.

    Raises UserError when a file or the root is not there.
    """
    for path in files:
        if not path.is_file():
            raise UserError(f"{path}: no such file")
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; name the media root with --media-root")
    held_out = HeldOutCheck(exclude, exclude_roots, root) if exclude else None
    found = check_files(files, root, workers, held_out)
    if held_out:
        print(*held_out.told(), sep="\n")
        for warning in held_out.warnings():
            print(warning, file=sys.stderr)
    print(f"{found.rows:,} rows, {found.images:,} images, {found.videos:,} videos: ", end="")
    if not found.problems:
        print("clean")
        return 0
    print(f"{len(found.problems):,} problems")
    for reason, count in found.counts.items():
        print(f"{count:>8,}  {reason}")
    alike: dict[tuple[int, str], list[Problem]] = {}
    for problem in found.problems:
        alike.setdefault((problem.file, _cause(problem)), []).append(problem)
    shown = list(alike.values())[: max(show, 0)]
    print(f"The first {len(shown)}:" if len(shown) < len(alike) else "They are:")
    for problem, *others in shown:
        more = f" (and {len(others):,} more like it in this file)" if others else ""
        print(f"  {problem.where}: {problem.reason}: {problem.message}{more}")
    return 1


def _cause(problem: Problem) -> str:
    """What all problems of one cause share: they are told once, with their number."""
    return problem.reason if problem.reason in _CAUSES else problem.message
