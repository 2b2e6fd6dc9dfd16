"""The items of a benchmark as a run folder keeps them: what was asked, and what is right."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cot_reward.errors import UserError
from cot_reward.rows.reading import read_rows
from cot_reward.store import write_jsonl
from cot_reward.tasks import TASKS
from cot_reward.tasks.generation import caption_in

# In the folder of a benchmark run.
ITEMS = "items.jsonl"


@dataclass(frozen=True)
class Item:
    """One item: a comparison, where it belongs, and which candidate is better.

    key: of the comparison (records.comparison_key); items with one key have the same answers
    cluster: items of one cluster (an image or a prompt) are not independent
    better: 1 or 2, counted as in the item; 0: neither is
    asked_label: the label of the question that was asked about the key, counted as in the item; of
        ties it says nothing
    text, candidates, context: for people; media are paths below the media root
    """

    name: str
    key: str
    group: str
    cluster: str
    better: int
    asked_label: int
    text: str = ""
    candidates: list[Any] = field(default_factory=list)
    context: list[str] = field(default_factory=list)

    def shown_first(self, row: Mapping[str, Any]) -> int:
        """The candidate, counted as in the item, that the question of a judged row shows first."""
        return self.asked_label if row["label"] == 1 else 3 - self.asked_label

    def named(self, row: Mapping[str, Any]) -> int:
        """The candidate, counted as in the item, that the answer names; 0 without an answer."""
        if not row["answer"]:
            return 0
        first = self.shown_first(row)
        return first if row["answer"] == 1 else 3 - first


def write_items(path: Path, items: Iterable[Item]) -> None:
    write_jsonl(path, (asdict(item) for item in items))


def read_items(path: Path) -> list[Item]:
    """Raises UserError for a file that is not as it was written."""
    items = []
    for number, row in read_rows(path):
        try:
            if isinstance(row, ValueError):
                raise row
            items.append(Item(**row))
        except (TypeError, ValueError) as error:
            raise UserError(
                f"{path}:{number}: not an item ({error}); run scripts/evaluate.py again"
            ) from None
    if len({item.name for item in items}) < len(items):
        raise UserError(f"{path}: two items have one name; run scripts/evaluate.py again")
    return items


def item_of_row(row: Mapping[str, Any]) -> Item:
    """The item that a judged row is about, where no benchmark names it; its group is its source."""
    is_given = row["order"] == "given"
    label = row["label"] if is_given else 3 - row["label"]
    text = row["conversations"][0]["value"]
    with suppress(ValueError):
        text = caption_in(text)
    context, shown = TASKS[row["task"]].parts(row["images"] or row["videos"])
    sides = [side if isinstance(side, str) else list(side) for side in shown or ()]
    return Item(
        row["id"], row["id"], row["source"] or row["task"], context[0] if context else text,
        label, label, text,
        sides if is_given else sides[::-1], list(context),
    )  # fmt: skip
