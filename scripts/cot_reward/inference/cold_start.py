"""Cold-start rows from a finished inference of a stronger model (scripts/distill.py)."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cot_reward.errors import UserError
from cot_reward.records import ORDERS
from cot_reward.rows.reading import read_rows
from cot_reward.store import dump, write_text_file


@dataclass(frozen=True)
class ColdStartSettings:
    rows_out: Path = field(
        default=Path("dataset/cold_start.jsonl"),
        metadata={"help": "JSONL file of the rows to write"},
    )
    both_orders: bool = field(
        default=True,
        metadata={"help": "take a comparison only if it has such a text in both orders"},
    )
    max_rows: int | None = field(default=None, metadata={"help": "most rows that are written"})

    def __post_init__(self) -> None:
        if self.max_rows is not None and self.max_rows < 2:
            raise ValueError(f"--max-rows must be 2 or more, is {self.max_rows}")


def check_orders(orders: int, settings: ColdStartSettings) -> None:
    """Raise UserError when fewer orders are asked than the rows need."""
    if settings.both_orders and orders < len(ORDERS):
        raise UserError("only one order is asked; --no-both-orders takes its texts alone")


def write_cold_start(correct: Path, settings: ColdStartSettings) -> int:
    """Write one right and coherent text of each comparison and order; returns the exit code.

    `correct`: the file of right texts; texts without totals are left out, too. A comparison with
    both orders has one text that answers 1 and one that answers 2. Raises UserError when there is
    none.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for number, row in read_rows(correct, may_be_empty=True):
        if isinstance(row, ValueError):
            raise UserError(f"{correct}:{number}: {row}")
        # A bare answer has no reasoning that could be coherent.
        if row["coherence"] == "coherent" or row.get("form") == "answer":
            found.setdefault(row["id"], {}).setdefault(row["order"], row)
    needed = len(ORDERS) if settings.both_orders else 1
    taken = [texts for texts in found.values() if len(texts) >= needed]
    rows = [row for texts in taken for row in texts.values()]
    if settings.max_rows is not None:
        # Whole comparisons.
        rows = rows[: settings.max_rows - settings.max_rows % needed]
    if not rows:
        raise UserError(
            f"{correct}: {len(found):,} comparisons have a right and coherent text"
            + (", and none of them in both orders" if settings.both_orders else "")
            + "; ask for more samples, or a stronger model"
        )
    write_text_file(settings.rows_out, (dump(row) + "\n" for row in rows))
    first = sum(row["answer"] == 1 for row in rows)
    print(
        f"{settings.rows_out}: {len(rows):,} rows of {len(found):,} comparisons with a right and "
        f"coherent text; {first:,} answer 1"
    )
    return 0
