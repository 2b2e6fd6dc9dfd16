"""Held-out comparisons (--exclude) in the merger's database: no pair may be about them."""

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from cot_reward.pairing.engine.database import Engine
from cot_reward.records import valid_unicode
from cot_reward.rows.file_flags import HeldOutFile
from cot_reward.rows.held_out import HeldOutRows, Met

_KEYS_PER_INSERT = 10_000
_SCHEMA = pa.schema([("file", pa.string()), ("digest", pa.int64())])


class Excluded(NamedTuple):
    """What was read: why a file is doubtful, by file; and `file`, `rows` and `digest` of each file.

    The digest (64 hexadecimal digits) is equal for files that leave out the same comparisons.
    """

    doubts: dict[str, str]
    files: list[dict[str, Any]]


def exclude(engine: Engine, files: Sequence[HeldOutFile], media_root: Path) -> Excluded:
    """Put the files' rows into the tables `held_out`, `held_out_pictures` and `excluded`.

    Raises UserError for a row that cannot be read.
    """
    found = Excluded({}, [])
    held: dict[str, list[int]] = {"held_out": [], "held_out_pictures": []}

    def flush(file: str) -> None:
        for table, digests in held.items():
            columns = [[file] * len(digests), digests]
            engine.add(table, pa.table(columns, schema=_SCHEMA))
            digests.clear()

    flush("")
    for file in files:
        rows = HeldOutRows(file, media_root)
        # Of what counts, not of the bytes: a pipe can be read once only.
        digest = sha256()
        for row in rows:
            digest.update(f"{sorted(row.keys)} {sorted(row.pictures)}\n".encode())
            held["held_out"] += row.keys
            held["held_out_pictures"] += row.pictures
            if len(held["held_out"]) >= _KEYS_PER_INSERT:
                flush(rows.name)
        flush(rows.name)
        if rows.doubt:
            found.doubts[rows.name] = rows.doubt
        found.files.append({"file": rows.name, "rows": rows.count, "digest": digest.hexdigest()})
    # A comparison may have many rows: orders, samples.
    engine.run("CREATE TABLE excluded AS SELECT DISTINCT digest AS comparison FROM held_out")
    return found


def count_met(engine: Engine, files: Sequence[HeldOutFile]) -> dict[str, Met]:
    """What the responses have of each held-out file."""
    met = {valid_unicode(str(file.path)): Met() for file in files}
    for name, comparisons in engine.run(
        "SELECT file, count(DISTINCT comparison) FROM held_out "
        "JOIN facts ON comparison = digest GROUP BY file"
    ):
        met[name].comparisons = comparisons
    for name, comparisons in engine.run(
        "SELECT file, count(DISTINCT comparison) FROM held_out_pictures "
        "JOIN facts ON pictures = digest ANTI JOIN excluded USING (comparison) GROUP BY file"
    ):
        met[name].of_same_pictures = comparisons
    return met
