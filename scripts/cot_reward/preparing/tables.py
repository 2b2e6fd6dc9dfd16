"""Rows of files as data sets have them, with the media that stand in the rows themselves.

JSON, JSONL, Parquet, Arrow, CSV, TSV, and tar files of WebDataset. A row that cannot be read is a
ValueError in its place, as in `rows.reading`.
"""

import csv
import json
import re
import tarfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from cot_reward.errors import UserError
from cot_reward.media.images import MAX_BYTES
from cot_reward.preparing.archives import opened_tar
from cot_reward.rows.reading import Row, read_rows

# Rows of a Parquet file that are in memory at once: each may hold pictures.
_ROWS_PER_BATCH = 32
# A field of a CSV file may be a picture in base64.
_MAX_FIELD_CHARACTERS = 2**27
_TAR = re.compile(r"\.(?:tar|tar\.gz|tgz)\Z", re.IGNORECASE)
_TEXTS = ("txt", "text", "caption", "cls")
KEY_COLUMN = "__key__"


def read_table(path: Path) -> Iterator[tuple[int, Row]]:
    """The rows of a file with their numbers from 1. Bytes stay bytes.

    Raises UserError for a file that is missing, empty, or cannot be read to its end; the rows
    before the fault come first.
    """
    kind = path.suffix.lower()
    if not path.exists():
        raise UserError(f"{path}: no such file")
    if kind in (".parquet", ".arrow"):
        rows = _arrow(path) if kind == ".arrow" else _parquet(path)
    elif kind in (".csv", ".tsv"):
        rows = _csv(path, "," if kind == ".csv" else "\t")
    elif _TAR.search(path.name):
        rows = _tar(path)
    else:
        yield from read_rows(path)
        return
    number = 0
    try:
        for number, row in enumerate(rows, 1):
            yield number, row
    except (OSError, tarfile.TarError, EOFError, csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read after row {number}: {error}") from None
    if not number:
        raise UserError(f"{path}: no rows")


def _parquet(path: Path) -> Iterator[Row]:
    # Imported here, because it takes a third of a second.
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as table:
            for batch in table.iter_batches(batch_size=_ROWS_PER_BATCH):
                yield from batch.to_pylist()
    except ArrowException as error:
        raise UserError(f"{path}: cannot be read as Parquet: {error}") from None


def _arrow(path: Path) -> Iterator[Row]:
    """`datasets` writes streams; other programs write files."""
    import pyarrow

    try:
        with pyarrow.memory_map(str(path)) as source:
            try:
                batches: Any = pyarrow.ipc.open_stream(source)
            except pyarrow.ArrowInvalid:
                source.seek(0)
                reader = pyarrow.ipc.open_file(source)
                batches = map(reader.get_batch, range(reader.num_record_batches))
            for batch in batches:
                for start in range(0, batch.num_rows, _ROWS_PER_BATCH):
                    yield from batch.slice(start, _ROWS_PER_BATCH).to_pylist()
    except pyarrow.ArrowException as error:
        raise UserError(f"{path}: cannot be read as Arrow: {error}") from None


def _csv(path: Path, separator: str) -> Iterator[Row]:
    """A row with more or fewer fields than the header is bad."""
    csv.field_size_limit(_MAX_FIELD_CHARACTERS)
    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = csv.reader(file, delimiter=separator, strict=True)
        header = next(lines, [])
        if len(set(header)) < len(header):
            raise UserError(f"{path}: two columns of its first line have one name")
        for line in lines:
            if not line:
                continue
            if separator == "\t" and any("\t" in text or "\n" in text for text in line):
                # A quotation mark at the beginning of a field may be a plain character, which takes
                # all that follows into this field.
                yield ValueError(
                    "a field in quotation marks goes on over tabs or lines; write the rows as JSONL"
                )
            elif len(line) == len(header):
                yield dict(zip(header, line, strict=True))
            else:
                yield ValueError(f"{len(line)} fields, and the first line has {len(header)}")


def _tar(path: Path) -> Iterator[Row]:
    """A row is made of consecutive files with one name up to the first dot: {ending: content}."""
    with opened_tar(path) as archive:
        files = (member for member in _members(archive) if member.isfile())
        for key, members in groupby(files, lambda member: _split(member.name)[0]):
            row: dict[str, Any] | ValueError = {KEY_COLUMN: key}
            for member in members:
                if isinstance(row, ValueError):
                    continue
                try:
                    row[_split(member.name)[1]] = _content(archive, member)
                except ValueError as error:
                    row = ValueError(f"{member.name!r:.80}: {error}")
            yield row


def _members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    for member in archive:
        yield member
        # It would keep every header.
        archive.members = []  # type: ignore[attr-defined]


def _split(name: str) -> tuple[str, str]:
    """Key and ending of a file in a tar file, as WebDataset takes them."""
    folder, slash, base = name.rpartition("/")
    stem, _, ending = base.partition(".")
    return folder + slash + stem, ending.lower()


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> Any:
    if member.size > MAX_BYTES:
        raise ValueError(f"{member.size:,} bytes, more than {MAX_BYTES:,}")
    file = archive.extractfile(member)
    assert file is not None
    data = file.read()
    ending = _split(member.name)[1].rpartition(".")[2]
    if ending == "json":
        return json.loads(data)
    return data.decode("utf-8").strip() if ending in _TEXTS else data
