"""A finished inference: its summary and its judged rows."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cot_reward.errors import UserError
from cot_reward.inference.results import JUDGED_FILES
from cot_reward.rows.reading import read_span, spans
from cot_reward.store import read_json

_BYTES_AT_ONCE = 2**26


def finished_summary(folder: Path) -> Mapping[str, Any]:
    """The client's summary.

    Raises UserError when the inference has not finished, is one share of several (--shard), or when
    outcomes decided what was asked.
    """
    path = folder / "summary.json"
    if not path.exists():
        raise UserError(f"{folder}: no summary.json; this inference has not finished")
    summary = read_json(path)
    if share := summary.get("settings", {}).get("shard"):
        raise UserError(
            f"{folder}: holds share {share} of its comparisons alone; scripts/gather.py joins all "
            "shares into one folder"
        )
    until = summary.get("settings", {}).get("until", "off")
    if until != "off":
        raise UserError(
            f"{folder}: sampled with --until {until}, so that the texts are no fair sample of the "
            "model's; run this inference again with --until off"
        )
    return summary


def judged_rows(folder: Path) -> list[dict[str, Any]]:
    """Every judged row. Raises what `finished_summary` and `stream_judged_rows` raise."""
    finished_summary(folder)
    return list(stream_judged_rows(folder))


def stream_judged_rows(folder: Path) -> Iterator[dict[str, Any]]:
    """The judged rows, one at a time.

    Raises UserError for a file that is missing, and for a line that is no row.
    """
    for name in JUDGED_FILES:
        path = folder / f"{name}.jsonl"
        if not path.exists():
            raise UserError(f"{path}: no such file, and a finished inference has it; was it moved?")
        for start, end in spans(path, _BYTES_AT_ONCE):
            for number, row in read_span(path, start, end):
                if isinstance(row, dict):
                    yield row
                elif row is not None:
                    raise UserError(f"{path}: line {number} after byte {start:,}: {row}")
