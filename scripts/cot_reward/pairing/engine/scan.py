"""First pass: files of responses -> Parquet shards of judged rows on disk, part by part.

A shard has the columns of `SCHEMA`. A row that no pair can use leaves its texts empty; the row
still counts for the label of its comparison and for the pass rate.
"""

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, Any

import orjson
import pyarrow as pa
from pyarrow.parquet import ParquetWriter

from cot_reward.errors import UserError
from cot_reward.media.paths import path_fault
from cot_reward.pairing.allowed_texts import Admission
from cot_reward.rows import reading
from cot_reward.rows.captions import FileCaptions
from cot_reward.rows.responses import (
    FindCaption,
    Judged,
    pictures_digest,
    prompt_and_text,
    read,
)
from cot_reward.rows.shards import Shard
from cot_reward.store import dump
from cot_reward.tasks import TASKS

# `row` is the row's number (see `_row_number`); `fate` is why no pair may use the row, "" when a
# pair may; `pictures` stands for the media that the row compares, whatever the caption (0: it
# compares texts).
_COLUMN_TYPES: dict[Any, Any] = {str: pa.string(), int: pa.int64()}
SCHEMA = pa.schema(
    [("row", pa.int64()), ("right_side", pa.bool_()), ("fate", pa.string())]
    + [("pictures", pa.int64())]
    + [(name, _COLUMN_TYPES[kind]) for name, kind in Judged.__annotations__.items()]
)
# Both sides of a pair have the same prompt and media, so only the right side keeps and sorts them.
_SHARED_COLUMNS = [SCHEMA.names.index(name) for name in ("prompt", "media")]
_TEXT_COLUMNS = [*_SHARED_COLUMNS, SCHEMA.names.index("text")]

# Input that one task of a process reads, at least. A part writes a shard for every bucket. Larger
# input has larger parts and larger buckets, and no more of them: both numbers would grow with it,
# and the number of shards with its square.
PART_BYTES = 2**24
MAX_PARTS = MAX_BUCKETS = 256
# What a process holds before it writes it: of texts, and of a row besides them.
_HELD_BYTES, _BYTES_BESIDES_TEXTS = 2**25, 1000
# The smallest and the largest input whose rows are sorted together.
_MIN_BUCKET_BYTES, MAX_BUCKET_BYTES = 2**24, 2**31
# Rows in memory take this many times the bytes that they take in a compressed file.
_PARQUET_EXPANSION = 8
# A row's number is its part's number, shifted by this, plus its line in the part.
_LINE_BITS = 40


@dataclass(frozen=True)
class Part:
    """A span of bytes of a JSONL file, or a complete file (`end` -1).

    With `shard`, rows about comparisons of other shares are counted, and no more.
    Its rows go into `buckets` shards below `folder`. `prefix` leads from the media root to what the
    paths of rows without a key are relative to.
    """

    number: int
    path: Path
    right_side: bool
    start: int
    end: int
    buckets: int
    folder: Path
    prefix: str
    admission: Admission
    shard: Shard | None = None


@dataclass(frozen=True)
class ScannedPart:
    """What a part held. `lines` counts blank lines too.

    `foreign_rows` are about comparisons of other shares. Every share has all `keyless_rows`: bad
    rows (part of `bad_rows`) that do not tell which comparison they are about.
    """

    part: Part
    lines: int
    rows: int
    bad_rows: int
    foreign_rows: int = 0
    keyless_rows: int = 0


def _bucket_bytes(memory: int, threads: int) -> int:
    """How much input may be sorted together, with so many bytes of memory.

    Each thread of a sort pins the blocks that its rows are in. With four threads and rows of 2.4
    KB, seven times this size were sorted, and fifteen times were too much.
    """
    return min(max(memory // (2 * threads), _MIN_BUCKET_BYTES), MAX_BUCKET_BYTES)


def _largest_bucket_bytes(memory: int, threads: int) -> int:
    """How much input can be sorted together at most, with so many bytes of memory.

    With rows of 1 KB and two threads, three quarters of the memory were sorted, and input as large
    as the memory was too much; with four threads half of it was sorted.
    """
    return max(memory // max(threads, 2), _bucket_bytes(memory, threads))


def parts_of(
    files: Sequence[tuple[Path, bool]],
    folder: Path,
    prefix: str,
    admission: Admission,
    memory: int,
    threads: int,
    shard: Shard | None = None,
) -> list[Part]:
    """The parts of all files; a file comes with whether it holds correct responses.

    `memory` (bytes) and `threads` are the database's: the rows of a bucket are sorted in them.
    Raises UserError for a file that cannot be read, and for more input than the memory can sort.
    """
    sizes = [
        path.stat().st_size * (_PARQUET_EXPANSION if path.suffix.lower() == ".parquet" else 1)
        for path, _ in files
        if path.is_file()
    ]
    total = sum(sizes)
    buckets = min(1 + total // _bucket_bytes(memory, threads), MAX_BUCKETS)
    most = buckets * _largest_bucket_bytes(memory, threads)
    if total > most:
        needed = max(threads, 2) * total / MAX_BUCKETS
        raise UserError(
            f"{total / 1e9:,.1f} GB of responses are too much for the database's memory, which "
            f"sorts {most / 1e9:,.1f} GB; give it {math.ceil(needed / 2**20):,} MiB or more "
            "(--memory 4GB, say), or merge shares of the comparisons (--shard)"
        )
    part_bytes = max(PART_BYTES, -(-total // MAX_PARTS))
    of_all = buckets, folder, prefix, admission, shard
    parts: list[Part] = []
    for path, right_side in files:
        try:
            spans = reading.spans(path, part_bytes) or [(0, -1)]
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror}") from None
        parts += [
            Part(len(parts) + n, path, right_side, start, end, *of_all)
            for n, (start, end) in enumerate(spans)
        ]
    return parts


def shard_path(folder: Path, bucket: int, name: str) -> Path:
    """The shard of a bucket by this name; the name "*" stands for all of them."""
    return folder / f"shard-{bucket:04}-{name}.parquet"


def bad_rows_path(folder: Path, part: int) -> Path:
    """The JSONL file of a part's bad rows: `line` in the part, and `reason`."""
    return folder / f"bad-{part:06}.jsonl"


class _Shards:
    """The shards that one part writes."""

    def __init__(self, part: Part) -> None:
        self._part = part
        self._held: list[list[tuple[Any, ...]]] = [[] for _ in range(part.buckets)]
        self._held_bytes = 0
        self._writers: dict[int, ParquetWriter] = {}

    def add(self, key: str, entry: tuple[Any, ...]) -> None:
        """Take a row; buckets are ranges of keys, so each is sorted by itself."""
        self._held[int(key[:8], 16) * self._part.buckets >> 32].append(entry)
        self._held_bytes += _BYTES_BESIDES_TEXTS + sum(len(entry[n]) for n in _TEXT_COLUMNS)
        if self._held_bytes >= _HELD_BYTES:
            self.flush()

    def flush(self) -> None:
        for bucket, entries in enumerate(self._held):
            if not entries:
                continue
            if bucket not in self._writers:
                self._writers[bucket] = ParquetWriter(
                    shard_path(self._part.folder, bucket, f"{self._part.number:06}"), SCHEMA,
                    compression="zstd", compression_level=1, write_statistics=False,
                )  # fmt: skip
            columns = [
                pa.array(column, kind)
                for column, kind in zip(zip(*entries, strict=True), SCHEMA.types, strict=True)
            ]
            self._writers[bucket].write_table(pa.table(columns, schema=SCHEMA))
            entries.clear()
        self._held_bytes = 0

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()


def _row_number(part: int, line: int) -> int:
    return (part << _LINE_BITS) + line


def _rows_of(part: Part) -> Iterator[tuple[int, reading.Row | None]]:
    if part.end < 0:
        return reading.read_rows(part.path)
    return reading.read_span(part.path, part.start, part.end)


def scan(part: Part) -> ScannedPart:
    """Judge the rows of a part, and write its shards and the file of its bad rows, if any.

    Raises UserError when the file cannot be read, and OSError when a shard cannot be written.
    """
    lines = rows = bad_rows = foreign_rows = keyless_rows = 0
    bad_rows_file: IO[str] | None = None
    shards = _Shards(part)
    find_caption = FileCaptions(part.path, lambda row: prompt_and_text(row)[0])
    try:
        for line, row in _rows_of(part):
            lines = line
            if row is None:
                continue
            rows += 1
            try:
                judged = _judge(row, part, find_caption, part.shard)
            # RecursionError: a value is nested too deeply for the message that shows it.
            except (ValueError, RecursionError) as error:
                bad_rows += 1
                keyless_rows += _is_keyless(row, part, find_caption)
                if bad_rows_file is None:
                    path = bad_rows_path(part.folder, part.number)
                    bad_rows_file = path.open("w", encoding="utf-8", errors="replace")
                bad_rows_file.write(dump({"line": line, "reason": str(error)}) + "\n")
                continue
            if judged is None:
                foreign_rows += 1
                continue
            shards.add(judged.id, _entry(part, line, judged))
        shards.flush()
    finally:
        shards.close()
        if bad_rows_file is not None:
            bad_rows_file.close()
    return ScannedPart(part, lines, rows, bad_rows, foreign_rows, keyless_rows)


def _judge(
    row: reading.Row, part: Part, find_caption: FindCaption, shard: Shard | None
) -> Judged | None:
    """What `read` makes of a row of the part. Raises ValueError and RecursionError."""
    if isinstance(row, ValueError):
        raise row
    _check_no_addresses(row)
    return read(row, part.right_side, part.prefix, find_caption, shard)


def _is_keyless(row: reading.Row, part: Part, find_caption: FindCaption) -> bool:
    """Whether a row that is bad in this share is bad in all others as well."""
    if part.shard is None:
        return True
    other = Shard(part.shard.number % part.shard.count + 1, part.shard.count)
    try:
        return _judge(row, part, find_caption, other) is not None
    except (ValueError, RecursionError):
        return True


def _check_no_addresses(row: reading.Row) -> None:
    """Raise ValueError for a medium that is an address, which as a path would be another name."""
    for name in ("images", "videos"):
        media = row.get(name) if isinstance(row, dict) else None
        for path in media if isinstance(media, list) else ():
            if isinstance(path, str) and (fault := path_fault(path)):
                raise ValueError(f"a path in '{name}' is {fault}")


def _entry(part: Part, line: int, judged: Judged) -> tuple[Any, ...]:
    """A row of `SCHEMA`."""
    fate = part.admission.refusal(judged, part.right_side)
    pictures = 0
    if TASKS[judged.task].compares_media:
        pictures = pictures_digest(chain.from_iterable(orjson.loads(judged.media)))
    entry = (_row_number(part.number, line), part.right_side, fate, pictures, *judged)
    if fate or not part.right_side:
        empty = _TEXT_COLUMNS if fate else _SHARED_COLUMNS
        return tuple("" if n in empty else value for n, value in enumerate(entry))
    return entry


def rows_by_file(scanned: Sequence[ScannedPart]) -> pa.Table:
    """Which row numbers each file and side has: a line for each part, `file` counts from 0."""
    numbers: dict[tuple[Path, bool], int] = {}
    parts = []
    for entry in scanned:
        part = entry.part
        file = numbers.setdefault((part.path, part.right_side), len(numbers))
        parts.append((file, str(part.path), part.right_side, part.number))
    names = ("file", "path", "on_right_side", "part")
    return pa.table(dict(zip(names, map(list, zip(*parts, strict=True)), strict=True)))


def count_by_file(scanned: Sequence[ScannedPart]) -> dict[tuple[str, bool], dict[str, int]]:
    """What each file and side has: bytes and rows.

    In a merge of a share also, of the rows, those without a key, which are in every share, and
    those of other shares (see `ScannedPart`).
    """
    counts: dict[tuple[str, bool], dict[str, int]] = {}
    for entry in scanned:
        path = entry.part.path
        of_file = counts.setdefault(
            (str(path), entry.part.right_side),
            {
                "bytes": path.stat().st_size if path.is_file() else 0,
                "rows": 0,
                **({"without_key": 0, "of_other_shares": 0} if entry.part.shard else {}),
            },
        )
        of_file["rows"] += entry.rows
        if entry.part.shard:
            of_file["without_key"] += entry.keyless_rows
            of_file["of_other_shares"] += entry.foreign_rows
    return counts


# In SQL: the number of the part that a row is from.
PART_OF_ROW = f"row >> {_LINE_BITS}"


class Places:
    """Which file and line a row's number stands for."""

    def __init__(self, scanned: Sequence[ScannedPart]) -> None:
        self._parts = {entry.part.number: entry.part for entry in scanned}
        self._lines_before: dict[int, int] = {}
        total, path = 0, None
        for entry in scanned:
            if entry.part.path != path or not entry.part.start:
                total, path = 0, entry.part.path
            self._lines_before[entry.part.number] = total
            total += entry.lines

    def locate(self, part: int, line: int) -> tuple[str, int]:
        """The file, and the line in it, of a line of a part."""
        return os.fspath(self._parts[part].path), self._lines_before[part] + line

    def name(self, row: int) -> str:
        """FILE:LINE of a row's number."""
        path, line = self.locate(row >> _LINE_BITS, row & (2**_LINE_BITS - 1))
        return f"{path}:{line}"
