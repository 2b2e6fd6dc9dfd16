"""Lists of what a merge could not use: bad_rows.jsonl and contradictory_labels.jsonl."""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from cot_reward.errors import UserError
from cot_reward.pairing.engine.database import Engine
from cot_reward.pairing.engine.scan import Places, ScannedPart, bad_rows_path
from cot_reward.pairing.excluded_rows import contradictory_comparisons
from cot_reward.pairing.rows_file import sha256_of
from cot_reward.rows.reading import read_rows
from cot_reward.store import write_jsonl

LISTS = _BAD_ROWS, _CONTRADICTORY_LABELS = "bad_rows.jsonl", "contradictory_labels.jsonl"
# Bad rows and contradictory comparisons that the summary itself names.
_MAX_NAMED = 100
# Of bad rows with one reason an error shows the first, and the number of the others.
_MAX_IN_ERROR, _MAX_COUNTED = 10, 100_000


def _bad_rows(scanned: Sequence[ScannedPart], folder: Path) -> Iterator[dict[str, Any]]:
    """File, line and reason of each bad row."""
    places = Places(scanned)
    for entry in scanned:
        if not entry.bad_rows:
            continue
        for number, row in read_rows(bad_rows_path(folder, entry.part.number)):
            assert not isinstance(row, ValueError), number
            path, line = places.locate(entry.part.number, row["line"])
            yield {"file": path, "line": line, "reason": row["reason"]}


def _to_line(row: dict[str, Any]) -> str:
    return f"{row['file']}:{row['line']}: {row['reason']}"


def check_bad_rows(scanned: Sequence[ScannedPart], folder: Path, max_share: float) -> None:
    """Raise UserError when a larger share of the rows is bad."""
    rows, bad = sum(entry.rows for entry in scanned), sum(entry.bad_rows for entry in scanned)
    foreign, keyless = (
        sum(getattr(entry, name) for entry in scanned) for name in ("foreign_rows", "keyless_rows")
    )
    # Of one share: the bad rows of all shares among all rows, and its own among its own.
    share = keyless / max(rows, 1) + (bad - keyless) / max(rows - foreign, 1)
    if share > max_share:
        places: dict[str, list[str]] = {}
        for row in islice(_bad_rows(scanned, folder), _MAX_COUNTED):
            places.setdefault(row["reason"], []).append(f"{row['file']}:{row['line']}")
        first = [
            f"{of_reason[0]}: {reason}"
            + (f" (and {len(of_reason) - 1:,} more rows)" if len(of_reason) > 1 else "")
            for reason, of_reason in islice(places.items(), _MAX_IN_ERROR)
        ]
        raise UserError(
            f"{bad} of {rows - foreign} rows are bad, more than --max-bad-rows {max_share} "
            "allows; the first:\n  " + "\n  ".join(first)
        )


def list_bad_rows(scanned: Sequence[ScannedPart], folder: Path, out: Path) -> list[str]:
    """Write out/bad_rows.jsonl; the first rows as FILE:LINE: REASON."""
    rows = write_list(out / _BAD_ROWS, _bad_rows(scanned, folder))
    return list(map(_to_line, rows))


def list_contradictory_labels(
    engine: Engine, scanned: Sequence[ScannedPart], out: Path
) -> list[str]:
    """Write out/contradictory_labels.jsonl; the keys of the first comparisons."""
    places = Places(scanned)
    rows = write_list(
        out / _CONTRADICTORY_LABELS,
        (
            {"id": key, "where": [places.name(row) for row in rows]}
            for key, rows in contradictory_comparisons(engine)
        ),
    )
    return [row["id"] for row in rows]


def write_list(path: Path, rows: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
    """Write the rows to a file of their own, or remove the file if there are none; the first."""
    first: list[dict[str, Any]] = []

    def keeping_first() -> Iterator[dict[str, Any]]:
        for row in rows:
            if len(first) < _MAX_NAMED:
                first.append(row)
            yield row

    write_jsonl(path, keeping_first())
    if not first:
        path.unlink()
    return first


def list_digests(out: Path) -> dict[str, str]:
    """The sha256 of each list in the folder, by its name."""
    found = {name: sha256_of(out / name) for name in LISTS}
    return {name: digest for name, digest in found.items() if digest}
