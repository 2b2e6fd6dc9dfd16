"""Files of any data set -> comparisons of this project's own form, with all media as files."""

import os
import random
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path
from typing import IO, Any, TypeVar

from tqdm import tqdm

from cot_reward.errors import UserError
from cot_reward.media.paths import MediaError, media_prefix
from cot_reward.media.video import remove_unfinished
from cot_reward.preparing.forms import FormReader, UnknownFormError
from cot_reward.preparing.mapping import ColumnMap, RawPair, RawRanked
from cot_reward.preparing.raw_comparisons import comparison_of
from cot_reward.preparing.settings import ConvertSettings
from cot_reward.preparing.shown_media import MediaFiles
from cot_reward.preparing.tables import read_table
from cot_reward.provenance import jsonable, versions
from cot_reward.rows.adapters.comparison import plain_row
from cot_reward.rows.labels import FileLabels, TieError, parse_meanings
from cot_reward.store import atomic_file, dump, read_json, write_json
from cot_reward.tasks import TASKS

SUMMARY = "summary.json"
# Written first: the folder is a conversion's.
_BEGUN = ".begun.json"
BAD_ROWS = "bad_rows.jsonl"
_BAD_SHOWN = 5
# Candidates of a group; all of their pairs are in memory.
_MOST_CANDIDATES = 500
# Rows whose media are being read, for each thread.
_WAITING = 8
_READ_ERRORS = (ValueError, MediaError)
_T = TypeVar("_T")


@dataclass
class Counts:
    """What became of the rows. `labels`: of each file that was begun."""

    rows: int = 0
    written: int = 0
    first_is_better: int = 0
    ranked_ties: int = 0
    bad: Counter[str] = field(default_factory=Counter)
    labels: dict[Path, FileLabels] = field(default_factory=dict)

    @property
    def ties(self) -> int:
        return self.ranked_ties + sum(labels.ties for labels in self.labels.values())


@dataclass(frozen=True)
class _Found:
    """A comparison as it stands in a file, with its place and task; or why there is none."""

    where: str
    raw: RawPair | None
    task: str | None
    fault: Exception | None = None


def convert(settings: ConvertSettings) -> int:
    """Write the comparisons of the files, and a summary; returns the exit code. Raises UserError.

    A row that cannot be read, or whose media cannot, is counted and named in `bad_rows.jsonl`.
    """
    prefix = media_prefix(settings.image_root or settings.media_root, settings.media_root)
    wanted = _identity(settings)
    summary = settings.out / SUMMARY
    if summary.exists():
        before = read_json(summary)
        if before.get("made_from") == wanted:
            print(f"{settings.out}: already converted from these files with these settings")
            return _exit_code(before, settings)
        raise UserError(
            f"{settings.out}: holds comparisons of other files or settings; name another --out, or "
            "delete the folder"
        )
    _begin(settings, wanted)
    remove_unfinished(settings.media_root / "frames")
    files = MediaFiles(settings.media_root, prefix, settings.frames, settings.max_pixels)
    counts = Counts()
    with ExitStack() as stack:
        bad_rows = stack.enter_context(atomic_file(settings.out / BAD_ROWS))
        out = stack.enter_context(_Shards(settings.out, settings.shard_rows))
        for found, row in _prepared(_comparisons(settings, counts), settings, files):
            if isinstance(row, Exception):
                _note_bad(found, row, counts, bad_rows)
                continue
            out.write(row)
            counts.written += 1
            counts.first_is_better += row["label"] == 1
            if counts.written == settings.limit:
                break
        for file, labels in counts.labels.items():
            labels.check(file)
        if not counts.written:
            raise UserError(
                f"{settings.files[0]}: no comparison in {counts.rows:,} rows{_told(counts.bad)}"
            )
    done = {
        "made_from": wanted, "rows": counts.rows, "written": counts.written,
        "first_is_better": counts.first_is_better, "ties": counts.ties, "bad": dict(counts.bad),
        "versions": versions("av", "pillow", "pyarrow"),
    }  # fmt: skip
    write_json(summary, done)
    share = counts.first_is_better / counts.written
    print(
        f"{settings.out}/rows-*.jsonl: {counts.written:,} comparisons of {counts.rows:,} rows, the "
        f"first candidate is better in {share:.1%}; {counts.ties:,} ties, "
        f"{counts.bad.total():,} bad rows{_told(counts.bad)}"
    )
    return _exit_code(done, settings)


def _exit_code(summary: Mapping[str, Any], settings: ConvertSettings) -> int:
    """3, with a message, when too many rows were bad."""
    if sum(summary["bad"].values()) <= settings.max_bad_rows * max(summary["rows"], 1):
        return 0
    print(
        f"error: more bad rows than --max-bad-rows {settings.max_bad_rows:g}; see "
        f"{settings.out / BAD_ROWS}",
        file=sys.stderr,
    )
    return 3


def _begin(settings: ConvertSettings, wanted: Mapping[str, Any]) -> None:
    """Make the folder, without what a stopped conversion left in it. Raises UserError.

    Files of the names of results that no conversion wrote are somebody's own.
    """
    begun = settings.out / _BEGUN
    there = [file for file in settings.out.glob("rows-*.jsonl") if file.is_file()]
    if there and not begun.exists():
        raise UserError(
            f"{there[0]}: was not written by a conversion, and would be replaced; name another "
            "--out"
        )
    for file in there:
        file.unlink()
    settings.out.mkdir(parents=True, exist_ok=True)
    write_json(begun, wanted)


def _identity(settings: ConvertSettings) -> dict[str, Any]:
    """What the comparisons of a folder depend on: the settings, and the files by size and time."""
    values = jsonable(asdict(settings))
    for name in ("workers", "max_bad_rows", "files", "out"):
        del values[name]
    try:
        read = [(str(file), os.stat(file)) for file in settings.files]
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read: {error.strerror}") from None
    return {**values, "files": [[name, stat.st_size, stat.st_mtime_ns] for name, stat in read]}


def _told(bad: Counter[str]) -> str:
    return "".join(f"\n  {count:,} x {reason}" for reason, count in bad.most_common())


def _note_bad(found: _Found, fault: Exception, counts: Counts, bad_rows: IO[str]) -> None:
    reason = getattr(fault, "reason", "bad_record")
    counts.bad[reason] += 1
    if counts.bad.total() <= _BAD_SHOWN:
        print(f"bad row: {found.where}: {reason}: {fault}", file=sys.stderr)
    bad_rows.write(dump({"where": found.where, "reason": reason, "detail": str(fault)}) + "\n")


# --- reading --------------------------------------------------------------------------------------


def _comparisons(settings: ConvertSettings, counts: Counts) -> Iterator[_Found]:
    """The comparisons of all files in their order, media unread. Raises UserError."""
    given = ColumnMap(settings.columns, settings.tie_margin) if settings.columns else None
    for file in settings.files:
        labels = counts.labels[file] = FileLabels(parse_meanings(settings.labels))
        if given and given.is_ranked:
            rows = _each(file, given.ranked, counts)
            yield from _of_groups(
                _brought_together(rows) if settings.groups_apart else rows, settings, counts
            )
            continue
        for where, found in _each(file, FormReader(given, labels).pair, counts):
            if isinstance(found, ValueError):
                yield _Found(where, None, None, found)
            else:
                yield _Found(where, *found)


def _each(
    file: Path, read: Callable[[Mapping[str, Any]], _T], counts: Counts
) -> Iterator[tuple[str, _T | ValueError]]:
    """The place of each row of a file that is no tie, and what `read` finds there, or its fault."""
    for number, row in tqdm(read_table(file), file.name, unit=" rows", disable=None):
        counts.rows += 1
        where = f"{file}:{number}"
        try:
            if isinstance(row, ValueError):
                raise row
            found = read(row)
        except TieError:
            continue
        except UnknownFormError as error:
            raise UserError(f"{where}: {error}") from None
        except ValueError as error:
            yield where, error
            continue
        yield where, found


def _brought_together(
    rows: Iterable[tuple[str, RawRanked | ValueError]],
) -> Iterator[tuple[str, RawRanked | ValueError]]:
    """The rows of a file with those of a group behind each other, in the order of the groups."""
    groups: dict[str, list[tuple[str, RawRanked | ValueError]]] = {}
    for where, found in rows:
        if isinstance(found, ValueError):
            yield where, found
        else:
            # Groups may be of any type, also one that has no hash.
            groups.setdefault(repr(found.group), []).append((where, found))
    for group in groups.values():
        yield from group


def _of_groups(
    rows: Iterable[tuple[str, RawRanked | ValueError]], settings: ConvertSettings, counts: Counts
) -> Iterator[_Found]:
    """All pairs of candidates of a group that differ in rank; a group's rows stand together."""
    entries: list[tuple[str, RawRanked]] = []
    seen: set[int] = set()

    def pairs() -> Iterator[_Found]:
        if not entries:
            return
        first = entries[0][1]
        # Groups may be of any type, also one that has no hash.
        group = hash(repr(first.group))
        fault = ""
        if group in seen:
            fault = "stand apart; sort the file by its groups, or give --groups-apart"
        elif len(entries) > _MOST_CANDIDATES:
            fault = f"are {len(entries):,}; is group=... of --map the right column?"
        elif any((one.text, one.context) != (first.text, first.context) for _, one in entries):
            fault = "have different texts (or contexts); is group=... of --map the right column?"
        if fault:
            error = ValueError(f"rows of group {first.group!r:.60} {fault}")
            yield from (_Found(where, None, None, error) for where, _ in entries)
        else:
            seen.add(group)
            yield from _pairs_of_group(entries, settings, counts)
        entries.clear()

    for where, found in rows:
        if isinstance(found, ValueError):
            yield _Found(where, None, None, found)
            continue
        if entries and found.group != entries[0][1].group:
            yield from pairs()
        entries.append((where, found))
    yield from pairs()


def _pairs_of_group(
    entries: list[tuple[str, RawRanked]], settings: ConvertSettings, counts: Counts
) -> Iterator[_Found]:
    pairs = []
    for (where, one), (_, other) in combinations(entries, 2):
        if abs(one.value - other.value) <= settings.tie_margin:
            counts.ranked_ties += 1
            continue
        better, worse = (one, other) if one.value > other.value else (other, one)
        candidates = better.medium, worse.medium
        raw = RawPair(better.text, candidates, 1, better.context, may_swap=True)
        pairs.append(_Found(where, raw, None))
    if settings.group_pairs and len(pairs) > settings.group_pairs:
        # The same pairs in every run.
        choice = random.Random(repr(entries[0][1].group))
        chosen = sorted(choice.sample(range(len(pairs)), settings.group_pairs))
        pairs = [pairs[number] for number in chosen]
    yield from pairs


# --- media and rows -------------------------------------------------------------------------------


def _prepared(
    comparisons: Iterator[_Found], settings: ConvertSettings, files: MediaFiles
) -> Iterator[tuple[_Found, dict[str, Any] | Exception]]:
    """Each comparison with its row, or with why there is none, in their order."""

    def prepare(found: _Found) -> dict[str, Any] | Exception:
        if found.fault:
            return found.fault
        try:
            return _row(found, settings.task, files)
        except _READ_ERRORS as error:
            return error

    waiting: deque[tuple[_Found, Future[dict[str, Any] | Exception]]] = deque()
    with ThreadPoolExecutor(settings.workers) as pool:
        try:
            for found in comparisons:
                waiting.append((found, pool.submit(prepare, found)))
                if len(waiting) >= _WAITING * settings.workers:
                    oldest, future = waiting.popleft()
                    yield oldest, future.result()
            for oldest, future in waiting:
                yield oldest, future.result()
        except OSError as error:
            raise UserError(
                f"{error.filename or settings.out}: cannot be read or written: {error.strerror}"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _row(found: _Found, default_task: str | None, files: MediaFiles) -> dict[str, Any]:
    """A row of this project's own form. Raises ValueError and MediaError."""
    assert found.raw is not None
    name = found.task or default_task
    if name is None:
        raise ValueError(f"the row names no task; name it with --task ({', '.join(TASKS)})")
    comparison = comparison_of(found.raw, name, files)
    if default_task not in (None, name):
        raise ValueError(f"a row of task {name}, not of --task {default_task}")
    return plain_row(comparison) | {"origin": found.where}


class _Shards:
    """Output files of `size` rows each, which appear when they are complete."""

    def __init__(self, folder: Path, size: int) -> None:
        self._folder, self._size = folder, size
        self._stack = ExitStack()
        self._rows = self._number = 0
        self._file: IO[str] | None = None

    def write(self, row: dict[str, Any]) -> None:
        if self._file is None or self._rows == self._size:
            self._stack.close()
            self._stack = ExitStack()
            self._file = self._stack.enter_context(atomic_file(self._path(self._number)))
            self._rows, self._number = 0, self._number + 1
        self._file.write(dump(row) + "\n")
        self._rows += 1

    def __enter__(self) -> "_Shards":
        return self

    def __exit__(self, kind: Any, *exception: Any) -> None:
        self._stack.__exit__(kind, *exception)
        if kind is not None:
            for number in range(self._number):
                self._path(number).unlink(missing_ok=True)

    def _path(self, number: int) -> Path:
        return self._folder / f"rows-{number:05}.jsonl"
