"""Files of responses -> Parquet shards of judged rows on disk, on all cores.

A shard has the columns of `SCHEMA`. Texts are left empty in rows that no pair can use; what such a
row says of its comparison's label and of the pass rate counts all the same.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
from pyarrow.parquet import ParquetWriter

from cot_reward.errors import UserError
from cot_reward.judge import TRUSTED
from cot_reward.pairing.settings import MergeSettings
from cot_reward.rows import reading
from cot_reward.rows.responses import Judged, is_unfit, read
from cot_reward.store import dump

# `row` is the part's number, then the number of the line in it; `fate` is why no pair may use the
# row, "" when one may.
_KINDS: dict[Any, Any] = {str: pa.string(), int: pa.int64()}
SCHEMA = pa.schema(
    [("row", pa.int64()), ("right_side", pa.bool_()), ("fate", pa.string())]
    + [(name, _KINDS[kind]) for name, kind in Judged.__annotations__.items()]
)
# Both sides of a pair have the same prompt and media: they are kept once, and sorted once.
_SHARED = [SCHEMA.names.index(name) for name in ("prompt", "media")]
_TEXTS = [*_SHARED, SCHEMA.names.index("text")]
_LINES = 40

# Bytes of input that a process takes at once, and rows that it holds.
_PART = 2**24
_ROWS = 8192
# Bytes of input whose rows are sorted at once; a sort of more pins more memory than it may have.
_BUCKET = 2**31
# How much longer rows are than what a compressed file has of them.
_PACKED = 8


@dataclass(frozen=True)
class Part:
    """A span of a JSONL file, or a whole file (`end` -1), and into how many buckets its rows go."""

    number: int
    path: Path
    right_side: bool
    start: int
    end: int
    buckets: int
    folder: Path
    prefix: str
    settings: MergeSettings


@dataclass(frozen=True)
class Seen:
    """What a part held. `lines` counts blank ones too."""

    part: Part
    lines: int
    rows: int
    bad: int


def parts_of(
    files: list[tuple[Path, bool]], folder: Path, prefix: str, settings: MergeSettings
) -> list[Part]:
    """What there is to read: (file, whether it is of correct responses), in parts of some MiB."""
    sizes = [
        path.stat().st_size * (_PACKED if path.suffix == ".parquet" else 1)
        for path, _ in files
        if path.is_file()
    ]
    buckets = 1 + sum(sizes) // _BUCKET
    parts: list[Part] = []
    for path, right_side in files:
        try:
            spans = reading.spans(path, _PART) or [(0, -1)]
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror}") from None
        parts += [
            Part(len(parts) + n, path, right_side, start, end, buckets, folder, prefix, settings)
            for n, (start, end) in enumerate(spans)
        ]
    return parts


def _rows(part: Part) -> Iterator[tuple[int, reading.Row | None]]:
    if part.end < 0:
        return reading.read_rows(part.path)
    return reading.read_span(part.path, part.start, part.end)


def _fate(judged: Judged, right_side: bool, settings: MergeSettings) -> str:
    """Why no pair may use it, or ""."""
    verdict, coherence = judged.verdict, judged.coherence
    if right_side:
        if verdict != "correct":
            return f"judged_{verdict}"
        if coherence not in settings.chosen_coherence and not settings.allow_incoherent:
            return f"chosen_{coherence}"
    else:
        kind = verdict
        if verdict == "correct" and coherence not in TRUSTED:
            kind = "incoherent"
        if kind not in settings.rejected_kinds:
            return f"judged_{verdict}"
        if kind == "incorrect" and coherence not in settings.rejected_coherence:
            return f"rejected_{coherence}"
    return "empty_or_holds_placeholder" if is_unfit(judged.text) else ""


def shard(folder: Path, bucket: int, name: str) -> Path:
    """The file of a bucket's rows of that name; "*" stands for all."""
    return folder / f"shard-{bucket:04}-{name}.parquet"


def scan(part: Part) -> Seen:
    """Judge the rows of a part; write `shard-BUCKET-N.parquet` and, of bad rows, `bad-N.jsonl`.

    Buckets part the keys in their order, so that each can be sorted by itself.

    Raises UserError when the file cannot be read, and OSError when a shard cannot be written.
    """
    lines = rows = bad = 0
    faults: IO[str] | None = None
    held: list[list[tuple[Any, ...]]] = [[] for _ in range(part.buckets)]
    writers: dict[int, ParquetWriter] = {}

    def flush() -> None:
        for bucket, entries in enumerate(held):
            if not entries:
                continue
            if bucket not in writers:
                writers[bucket] = ParquetWriter(
                    shard(part.folder, bucket, f"{part.number:06}"), SCHEMA,
                    compression="zstd", compression_level=1, write_statistics=False,
                )  # fmt: skip
            columns = [
                pa.array(column, kind)
                for column, kind in zip(zip(*entries, strict=True), SCHEMA.types, strict=True)
            ]
            writers[bucket].write_table(pa.table(columns, schema=SCHEMA))
            entries.clear()

    base = part.number << _LINES
    try:
        for number, row in _rows(part):
            lines = number
            if row is None:
                continue
            rows += 1
            try:
                if isinstance(row, ValueError):
                    raise row
                judged = read(row, part.right_side, part.prefix)
            # The second of a value that is nested too deep to be shown.
            except (ValueError, RecursionError) as error:
                bad += 1
                if faults is None:
                    path = part.folder / f"bad-{part.number:06}.jsonl"
                    faults = path.open("w", encoding="utf-8", errors="replace")
                faults.write(dump({"line": number, "reason": str(error)}) + "\n")
                continue
            fate = _fate(judged, part.right_side, part.settings)
            entry: tuple[Any, ...] = (base + number, part.right_side, fate, *judged)
            if fate or not part.right_side:
                empty = _TEXTS if fate else _SHARED
                entry = tuple("" if n in empty else value for n, value in enumerate(entry))
            held[int(judged.id[:8], 16) * part.buckets >> 32].append(entry)
            if not rows % _ROWS:
                flush()
        flush()
    finally:
        for writer in writers.values():
            writer.close()
        if faults is not None:
            faults.close()
    return Seen(part, lines, rows, bad)


class Places:
    """Which file and line a row's number stands for."""

    def __init__(self, seen: list[Seen]) -> None:
        self._parts = {one.part.number: one.part for one in seen}
        self._before: dict[int, int] = {}
        total, path = 0, None
        for one in seen:
            if one.part.path != path or not one.part.start:
                total, path = 0, one.part.path
            self._before[one.part.number] = total
            total += one.lines

    def of(self, part: int, line: int) -> tuple[str, int]:
        """The file, and the line in it, of a line of a part."""
        return os.fspath(self._parts[part].path), self._before[part] + line

    def name(self, row: int) -> str:
        """FILE:LINE of a row's number."""
        path, line = self.of(row >> _LINES, row & (2**_LINES - 1))
        return f"{path}:{line}"
