"""Possible pairs without texts, and the table `pairs` after selection and balancing."""

from collections import Counter
from pathlib import Path
from typing import Any
from zlib import crc32

import pyarrow as pa
from cot_reward.pairing.balance import balance
from cot_reward.pairing.engine.database import Engine
from cot_reward.pairing.engine.match import POSSIBLE_PAIRS
from cot_reward.pairing.selection import select_pairs


def possible_pair(
    number: int,
    id_: str = "a",
    answer: int = 1,
    longer: int = 0,
    cost: float = 0.0,
    source: str = "s",
    place: str = "p",
    rank: int = 0,
) -> dict[str, Any]:
    return {
        "batch": 0, "start": number, "length": 1, "id": id_, "comparison": crc32(id_.encode()),
        "presentation": crc32(place.encode()), "rank_in_presentation": rank,
        "cost": float(cost), "task": "image_generation", "source": source, "chosen_answer": answer,
        "rejected_answer": 3 - answer, "longer": longer, "length_difference": longer,
        "kind": "same_model", "chosen_row": 2 * number, "rejected_row": 2 * number + 1,
        "shown": [crc32(f"caption of {id_}".encode())], "filled": ["images"], "spare": False,
        "chosen_text": 2 * number, "rejected_text": 2 * number + 1,
    }  # fmt: skip


class BalancedPairs:
    """The rows of the table `pairs` after `select_pairs` and `balance`, as dicts; the changes."""

    def __init__(
        self,
        folder: Path,
        pairs: list[dict[str, Any]],
        count: int = 1,
        eval_fraction: float = 0.0,
        seed: int = 0,
        one_model: bool = False,
        separate_kinds: bool = False,
        **options: Any,
    ) -> None:
        options = {"positions": True, "lengths": False, "weights": {}} | options
        with Engine(folder, "200MB", 1) as engine:
            engine.add("possible_pairs", pa.Table.from_pylist(pairs, schema=POSSIBLE_PAIRS))
            select_pairs(engine, count, eval_fraction, seed, one_model, separate_kinds)
            self.changes = balance(engine, pairs_per_comparison=count, seed=seed, **options)
            columns = {"answer": "chosen_answer"} | {
                name: name
                for name in (
                    "pair",
                    "id",
                    "split",
                    "source",
                    "kind",
                    "longer",
                    "state",
                    "first_choice",
                )
            }
            rows = engine.run(f"SELECT {', '.join(columns.values())} FROM pairs ORDER BY pair")
        (folder / "merge.duckdb").unlink()
        self.rows = [dict(zip(columns, row, strict=True)) for row in rows]
        self.kept = [row for row in self.rows if row["state"] == "used"]

    def count(self, column: str, **where: Any) -> Counter[Any]:
        """The kept pairs by a column, where other columns have these values."""
        return Counter(
            row[column] for row in self.kept if all(row[k] == v for k, v in where.items())
        )
