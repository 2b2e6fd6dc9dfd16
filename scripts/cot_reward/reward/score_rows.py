"""The rows of scripts/score.py: prompts, with candidates that they name or that a folder has."""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cot_reward.media.images import IMAGE_ENDINGS
from cot_reward.media.paths import MediaError, media_path, path_fault, resolve
from cot_reward.records import Task
from cot_reward.reward.question import Candidate
from cot_reward.reward.results import Failure
from cot_reward.reward.settings import ScoreSettings
from cot_reward.rows.reading import read_rows, row_noun


@dataclass(frozen=True)
class ScoreRow:
    """A prompt and its candidates. `names` are the candidates' own, for the results.

    A path that cannot be used is a Failure in the candidate's place.
    """

    id: str
    where: str
    prompt: str
    names: tuple[str, ...]
    candidates: tuple[Candidate | Failure, ...]
    context: tuple[Path, ...] = ()
    reference: Candidate | Failure | None = None


@dataclass
class Rows:
    """The rows of a file, and the bad ones: where each stands, and why it is bad."""

    good: list[ScoreRow] = field(default_factory=list)
    bad: list[dict[str, str]] = field(default_factory=list)


def read_score_rows(settings: ScoreSettings, task: Task) -> Rows:
    """All rows of a file (of --limit the first ones). Raises UserError for an unreadable file."""
    rows, noun, ids = Rows(), row_noun(settings.data), set[str]()
    for number, row in read_rows(settings.data):
        if settings.limit is not None and len(rows.good) + len(rows.bad) >= settings.limit:
            break
        where = f"{settings.data}, {noun} {number}"
        try:
            if isinstance(row, ValueError):
                raise row
            one = _row(row, number, where, settings, task)
            if one.id in ids:
                raise ValueError(f"its id {one.id!r} is that of another row")
        except (ValueError, MediaError, OSError) as error:
            rows.bad.append({"id": str(number), "where": where, "detail": str(error)})
            continue
        ids.add(one.id)
        rows.good.append(one)
    return rows


def _row(
    row: Mapping[str, Any], number: int, where: str, settings: ScoreSettings, task: Task
) -> ScoreRow:
    """Raises ValueError, MediaError and OSError for a bad row."""
    prompt = row.get("prompt", row.get(task.text_field))
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError("it has no 'prompt' with a text")
    own = row.get("id", number)
    if not isinstance(own, str | int) or isinstance(own, bool) or str(own) == "":
        raise ValueError(f"its 'id' is {own!r:.40}; it must be a string or a number")
    identity = str(own)
    root = settings.rows_root
    if "candidates" in row or settings.candidates is None:
        given = row.get("candidates")
        if not isinstance(given, list) or not given:
            raise ValueError("it has no list of 'candidates' (--candidates names a folder of them)")
        names = tuple(
            one if isinstance(one, str) else str(index) for index, one in enumerate(given)
        )
        candidates = tuple(_candidate(one, root, task) for one in given)
    else:
        found = dict(_in_folder(settings.candidates, identity, task))
        names, candidates = tuple(found), tuple(found.values())
    context = row.get("context", [])
    context = [context] if isinstance(context, str) else context
    if not isinstance(context, list):
        raise ValueError("its 'context' is not a path or a list of paths")
    reference = None
    if settings.reference:
        if row.get("reference") is None:
            raise ValueError("it has no 'reference' (--reference compares with it)")
        reference = _candidate(row["reference"], root, task)
    return ScoreRow(
        identity, where, prompt, names, candidates, tuple(_file(one, root) for one in context),
        reference,
    )  # fmt: skip


def _candidate(given: Any, root: Path, task: Task) -> Candidate | Failure:
    """Raises ValueError for a value of another type than the task's candidates have."""
    if not task.compares_media:
        if not isinstance(given, str):
            raise ValueError(f"a candidate is {given!r:.40}, and task {task.name} compares texts")
        return given
    try:
        if isinstance(given, list):
            return [_file(one, root) for one in given]
        return _file(given, root)
    except MediaError as error:
        return Failure(error.reason, str(error))


def _file(path: Any, root: Path) -> Path:
    """A file below the root, links followed. Raises ValueError and MediaError."""
    if not isinstance(path, str) or not path:
        raise ValueError(f"a path is {path!r:.40}; it must be a string")
    if fault := path_fault(path):
        raise ValueError(f"a path is {fault}")
    return resolve(path, root)


def _in_folder(root: Path, identity: str, task: Task) -> Iterator[tuple[str, Candidate | Failure]]:
    """The candidates in the folder of an id: pictures, or folders of frames.

    Raises ValueError where there are none, and for an id that leads out of the root.
    """
    if not task.compares_media:
        raise ValueError(f"task {task.name} compares texts, which no folder has: give 'candidates'")
    folder = root / media_path(identity, "")
    base = os.path.realpath(root)
    if not f"{os.path.realpath(folder)}/".startswith(f"{base.rstrip('/')}/"):
        raise ValueError(f"the folder of its id {identity!r:.80} is not in {root}")
    if not folder.is_dir() or os.path.realpath(folder) == base:
        raise ValueError(f"there is no folder {folder} with its candidates")
    found: list[tuple[str, Candidate | Failure]] = [*_pictures(folder, root)]
    if task.medium == "video":
        found = []
        for one in sorted(folder.iterdir(), key=_natural):
            if one.is_dir() and not one.name.startswith("."):
                frames = [frame for _, frame in _pictures(one, root)]
                bad = [frame for frame in frames if isinstance(frame, Failure)]
                good = [frame for frame in frames if isinstance(frame, Path)]
                # A video without one of its frames is another video.
                if frames:
                    found.append((f"{identity}/{one.name}", bad[0] if bad else good))
    if not found:
        raise ValueError(f"there are no candidates in {folder}")
    yield from found


def _pictures(folder: Path, root: Path) -> Iterator[tuple[str, Path | Failure]]:
    for file in sorted(folder.iterdir(), key=_natural):
        if file.name.startswith(".") or file.suffix.lower() not in IMAGE_ENDINGS:
            continue
        name = file.relative_to(root).as_posix()
        try:
            yield name, resolve(name, root)
        except MediaError as error:
            yield name, Failure(error.reason, str(error))


def _natural(path: Path) -> list[tuple[int, str]]:
    """2.png comes before 10.png."""
    parts = re.split(r"(\d+)", path.name)
    return [
        (int(part), "") if part.isdecimal() and part.isascii() else (-1, part) for part in parts
    ]
