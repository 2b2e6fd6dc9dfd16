"""The ledger of a run: its comparisons and their units, in a database on disk.

A unit is one sample of one comparison in one order. "given" and "swapped" depend on the record that
names the comparison first, and another start may read another record first. So units are kept by
whether the candidate shown first is the smaller text ("ascending"), which no reading order changes.

The ledger is made anew from the input and the journal at every start. It holds nothing that is not
in them; it keeps memory flat for millions of units.
"""

import json
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from cot_reward.records import Comparison, Order, Verdict, as_tuple, valid_unicode

_TABLES = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
PRAGMA cache_size = -4000;
CREATE TABLE comparisons (
    position INTEGER PRIMARY KEY, key BLOB UNIQUE, place TEXT, preferred TEXT, body TEXT,
    task TEXT, label INTEGER, ascending INTEGER, conflict TEXT
);
CREATE TABLE bad (id TEXT, place TEXT, reason TEXT, detail TEXT);
CREATE TABLE duplicates (id BLOB, place TEXT, first TEXT);
CREATE TABLE units (
    key BLOB, ascending INTEGER, sample INTEGER, offset INTEGER, failed INTEGER,
    verdict TEXT, coherence TEXT, answer INTEGER, mismatch INTEGER, side TEXT,
    PRIMARY KEY (key, ascending, sample)
) WITHOUT ROWID;
"""


# The side of a pair that a text can be on; "": of none, or nobody asked.
Side = Literal["", "right", "wrong"]


@dataclass(frozen=True)
class Listed:
    """A comparison with its key and its record's position in the input."""

    key: str
    where: str
    comparison: Comparison


class Presentation(NamedTuple):
    """How a comparison was shown: `label` counts in that order."""

    task: str
    order: Order
    label: int


class Unit(NamedTuple):
    """A journaled unit. `offset` is the byte of the journal where its entry begins.

    `verdict` is None for a failure, and for a response that was not judged.
    """

    sample: int
    offset: int
    failed: bool
    verdict: Verdict | None
    side: Side = ""


class Ledger:
    """Comparisons in input order, each once, and what the journal holds of their units.

    `path` is the database file, made anew and removed at the end; None: a temporary file.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
        self._database = sqlite3.connect(path or "", isolation_level=None)
        self._database.executescript(_TABLES)
        self._execute = self._database.execute
        # One transaction that is never committed: nothing here has to survive.
        self._execute("BEGIN")
        self._listed = 0
        # Records of all files. Ties prefer neither candidate: nothing is asked about them.
        self.record_count = self.tie_count = 0
        # Records of other shares, which this run does not account for, and the bad ones and the
        # usable ones of them.
        self.other_records = self.other_bad = self.other_usable = 0

    # --- the input --------------------------------------------------------------------------------

    def add(self, comparison: Comparison, where: str, again: bool = False) -> None:
        """List a comparison. A comparison that is listed already counts as a duplicate.

        `again`: its file names comparisons many times, and no time counts as a duplicate.
        """
        key = _blob(comparison.key)
        # As text: a video is a list of frames.
        preferred = "\n".join(as_tuple(comparison.candidates[comparison.label - 1]))
        where, body = valid_unicode(where), json.dumps(asdict(comparison))
        added = self._execute(
            "INSERT OR IGNORE INTO comparisons "
            "(key, place, preferred, body, task, label, ascending) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                key, where, preferred, body, comparison.task, comparison.label,
                is_ascending(comparison, "given"),
            ),
        )  # fmt: skip
        if added.rowcount:
            self._listed += 1
            return
        before, first = self._execute(
            "SELECT preferred, place FROM comparisons WHERE key = ?", (key,)
        ).fetchone()
        if not again:
            self._execute("INSERT INTO duplicates VALUES (?, ?, ?)", (key, where, first))
        # The same pair may come again in the other order, with the label turned around.
        if before != preferred:
            self._execute("UPDATE comparisons SET conflict = ? WHERE key = ?", (where, key))

    def add_bad(self, where: str, reason: str, detail: str) -> None:
        self._execute(
            "INSERT INTO bad VALUES ('', ?, ?, ?)",
            (valid_unicode(where), reason, valid_unicode(detail)),
        )

    def drop_conflicts(self) -> None:
        """Make a bad record of each comparison that came with both labels."""
        self._execute(
            "INSERT INTO bad SELECT lower(hex(key)), place, 'conflicting_label', "
            "conflict || ' has the same comparison with the other label' "
            "FROM comparisons WHERE conflict IS NOT NULL"
        )
        dropped = self._execute("DELETE FROM comparisons WHERE conflict IS NOT NULL")
        self._listed -= dropped.rowcount

    def __len__(self) -> int:
        return self._listed

    def _count(self, table: str) -> int:
        return int(self._execute(f"SELECT count(*) FROM {table}").fetchone()[0])

    def __iter__(self) -> Iterator[Listed]:
        rows = self._execute("SELECT key, place, body FROM comparisons ORDER BY position")
        for key, place, body in rows:
            fields = json.loads(body)
            fields["context"] = tuple(fields["context"])
            fields["candidates"] = tuple(
                tuple(candidate) if isinstance(candidate, list) else candidate
                for candidate in fields["candidates"]
            )
            yield Listed(key.hex(), place, Comparison(**fields))

    def tasks(self) -> list[str]:
        found = self._execute("SELECT DISTINCT task FROM comparisons")
        return sorted(task for (task,) in found)

    @property
    def bad_count(self) -> int:
        return self._count("bad")

    def bad(self) -> Iterator[dict[str, Any]]:
        for row in self._execute("SELECT id, place, reason, detail FROM bad"):
            yield dict(zip(("id", "where", "reason", "detail"), row, strict=True))

    @property
    def duplicate_count(self) -> int:
        return self._count("duplicates")

    def duplicates(self) -> Iterator[dict[str, str]]:
        for key, where, first in self._execute("SELECT id, place, first FROM duplicates"):
            yield {"id": key.hex(), "where": where, "first": first}

    # --- the units --------------------------------------------------------------------------------

    def enter(
        self, entry: dict[str, Any], offset: int, verdict: Verdict | None, side: Side = ""
    ) -> None:
        """Take in a journal entry that begins at this byte of the journal, with its verdict.

        A response stays for good; a failure gives way to a response, and to a later failure. The
        entry's comparison need not be listed.
        """
        key, failed = _blob(entry["key"]), "reason" in entry
        samples = (
            range(entry["first"], entry["first"] + entry["count"]) if failed else [entry["sample"]]
        )
        finding = (
            (verdict.verdict, verdict.coherence, verdict.answer, verdict.mismatch)
            if verdict
            else (None, None, None, None)
        )
        for sample in samples:
            self._execute(
                "INSERT INTO units VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE "
                "SET offset = excluded.offset, failed = excluded.failed, "
                "verdict = excluded.verdict, coherence = excluded.coherence, "
                "answer = excluded.answer, mismatch = excluded.mismatch, side = excluded.side "
                "WHERE failed",
                (key, entry["ascending"], sample, offset, failed, *finding, side),
            )

    def presentation(self, key: str, ascending: bool) -> Presentation | None:
        """How a journaled comparison was shown; None when it is not listed."""
        row = self._execute(
            "SELECT task, label, ascending FROM comparisons WHERE key = ?", (_blob(key),)
        ).fetchone()
        if row is None:
            return None
        task, label, given_ascending = row
        if bool(given_ascending) == ascending:
            return Presentation(task, "given", label)
        return Presentation(task, "swapped", 3 - label)

    def units(self, listed: Listed, order: Order, samples: int) -> list[Unit]:
        """What the journal holds of the first `samples` units of a comparison in one order."""
        rows = self._execute(
            "SELECT sample, offset, failed, verdict, coherence, answer, mismatch, side FROM units "
            "WHERE key = ? AND ascending = ? AND sample < ? ORDER BY sample",
            (_blob(listed.key), is_ascending(listed.comparison, order), samples),
        )
        return [
            Unit(
                sample, offset, bool(failed),
                Verdict(verdict, coherence, answer, bool(mismatch)) if verdict else None,
                side,
            )
            for sample, offset, failed, verdict, coherence, answer, mismatch, side in rows
        ]  # fmt: skip

    def progress(self, orders: Sequence[Order], samples: int) -> tuple[int, int]:
        """How many units of the listed comparisons have a response, and how many failed."""
        row = self._execute(
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


def is_ascending(comparison: Comparison, order: Order) -> bool:
    """Whether the candidate shown first in this order is the smaller text."""
    first, second = map(as_tuple, comparison.presented(order)[0])
    return first < second


def _blob(key: str) -> bytes:
    return bytes.fromhex(key)
