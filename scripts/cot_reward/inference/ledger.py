"""What a run is about and how far it is: comparisons and their units, in a database on disk.

A unit is one sample of one comparison in one order. "given" and "swapped" depend on the record that
names the comparison first, and another run may read another one first. So units are kept by whether
the candidate shown first is the smaller text ("ascending"), which nothing can turn around.

The ledger is made anew from the input and the
journal at every start, and is never the truth about anything; it keeps memory flat for millions.
"""

import json
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cot_reward.records import Comparison, Order, valid_unicode

_TABLES = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
PRAGMA cache_size = -4000;
CREATE TABLE comparisons (
    position INTEGER PRIMARY KEY, key BLOB UNIQUE, place TEXT, preferred TEXT, body TEXT,
    ascending INTEGER, conflict TEXT
);
CREATE TABLE bad (id TEXT, place TEXT, reason TEXT, detail TEXT);
CREATE TABLE duplicates (id BLOB, place TEXT, first TEXT);
CREATE TABLE units (
    key BLOB, ascending INTEGER, sample INTEGER, offset INTEGER, failed INTEGER,
    PRIMARY KEY (key, ascending, sample)
) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Listed:
    """A comparison with its key and its record's position in the input."""

    key: str
    where: str
    comparison: Comparison


class Ledger:
    """Comparisons in input order, each once, and what is journaled about their units.

    `path` is the database file, made anew and removed at the end; None: a temporary file.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
        self._database = sqlite3.connect(path or "", isolation_level=None)
        self._database.executescript(_TABLES)
        self._do = self._database.execute
        # One transaction for the whole life: nothing here has to survive.
        self._do("BEGIN")
        self._listed = 0

    # --- the input --------------------------------------------------------------------------------

    def add(self, comparison: Comparison, where: str) -> None:
        """List a comparison; one that is listed already counts as a duplicate."""
        key, preferred = _blob(comparison.key), comparison.candidates[comparison.label - 1]
        where, body = valid_unicode(where), json.dumps(asdict(comparison))
        added = self._do(
            "INSERT OR IGNORE INTO comparisons (key, place, preferred, body, ascending) "
            "VALUES (?, ?, ?, ?, ?)",
            (key, where, preferred, body, ascending(comparison, "given")),
        )
        if added.rowcount:
            self._listed += 1
            return
        before, first = self._do(
            "SELECT preferred, place FROM comparisons WHERE key = ?", (key,)
        ).fetchone()
        self._do("INSERT INTO duplicates VALUES (?, ?, ?)", (key, where, first))
        # The same pair may come again in the other order, with the label turned around.
        if before != preferred:
            self._do("UPDATE comparisons SET conflict = ? WHERE key = ?", (where, key))

    def add_bad(self, where: str, reason: str, detail: str) -> None:
        self._do(
            "INSERT INTO bad VALUES ('', ?, ?, ?)",
            (valid_unicode(where), reason, valid_unicode(detail)),
        )

    def drop_conflicts(self) -> None:
        """Make a bad record of each comparison that came with both labels."""
        self._do(
            "INSERT INTO bad SELECT lower(hex(key)), place, 'conflicting_label', "
            "conflict || ' has the same comparison with the other label' "
            "FROM comparisons WHERE conflict IS NOT NULL"
        )
        dropped = self._do("DELETE FROM comparisons WHERE conflict IS NOT NULL")
        self._listed -= dropped.rowcount

    def __len__(self) -> int:
        return self._listed

    def _count(self, table: str) -> int:
        return int(self._do(f"SELECT count(*) FROM {table}").fetchone()[0])

    def __iter__(self) -> Iterator[Listed]:
        rows = self._do("SELECT key, place, body FROM comparisons ORDER BY position")
        for key, place, body in rows:
            fields = json.loads(body)
            for name in ("candidates", "context"):
                fields[name] = tuple(fields[name])
            yield Listed(key.hex(), place, Comparison(**fields))

    def tasks(self) -> list[str]:
        found = self._do("SELECT DISTINCT json_extract(body, '$.task') FROM comparisons")
        return sorted(task for (task,) in found)

    @property
    def bad_count(self) -> int:
        return self._count("bad")

    def bad(self) -> Iterator[dict[str, Any]]:
        for row in self._do("SELECT id, place, reason, detail FROM bad"):
            yield dict(zip(("id", "where", "reason", "detail"), row, strict=True))

    @property
    def duplicate_count(self) -> int:
        return self._count("duplicates")

    def duplicates(self) -> Iterator[dict[str, str]]:
        for key, where, first in self._do("SELECT id, place, first FROM duplicates"):
            yield {"id": key.hex(), "where": where, "first": first}

    # --- the units --------------------------------------------------------------------------------

    def enter(self, entry: dict[str, Any], offset: int) -> None:
        """Take in a journal entry that begins at this byte of the journal.

        A response stays for good; a failure gives way to a response, and to a later failure.
        """
        key, failed = _blob(entry["key"]), "reason" in entry
        samples = range(entry["first"], entry["first"] + entry["count"]) if failed else (
            entry["sample"],
        )  # fmt: skip
        for sample in samples:
            self._do(
                "INSERT INTO units VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE "
                "SET offset = excluded.offset, failed = excluded.failed WHERE failed",
                (key, entry["ascending"], sample, offset, failed),
            )

    def known(self, listed: Listed, order: Order, samples: int) -> dict[int, tuple[int, bool]]:
        """sample -> (offset of its journal entry, whether it failed), of the first `samples`."""
        rows = self._do(
            "SELECT sample, offset, failed FROM units "
            "WHERE key = ? AND ascending = ? AND sample < ? ORDER BY sample",
            (_blob(listed.key), ascending(listed.comparison, order), samples),
        )
        return {sample: (offset, bool(failed)) for sample, offset, failed in rows}

    def progress(self, orders: Sequence[Order], samples: int) -> tuple[int, int]:
        """How many units of the listed comparisons have a response, and how many failed."""
        row = self._do(
            "SELECT count(*), coalesce(sum(failed), 0) FROM units JOIN comparisons USING (key) "
            "WHERE sample < ? AND iif(units.ascending = comparisons.ascending, ?, ?)",
            (samples, "given" in orders, "swapped" in orders),
        ).fetchone()
        return row[0] - row[1], row[1]

    def close(self) -> None:
        self._database.close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def ascending(comparison: Comparison, order: Order) -> bool:
    """Whether the candidate shown first in this order is the smaller text."""
    first, second = comparison.presented(order)[0]
    return first < second


def _blob(key: str) -> bytes:
    return bytes.fromhex(key)
