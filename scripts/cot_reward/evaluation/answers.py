"""What a model answered to the items of a benchmark, as arrays, from the rows of a finished run."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cot_reward.errors import UserError
from cot_reward.evaluation.finished import finished_summary, stream_judged_rows
from cot_reward.evaluation.items import ITEMS, Item, item_of_row, read_items
from cot_reward.inference.results import NOT_KNOWN
from cot_reward.records import ORDERS

# Values of `Answers.picks` beside the candidates 1 and 2.
NO_ANSWER = 0
MISSING = -1
# The fields of `Answers` with a value for each text.
_ARRAYS = ("picks", "coherent", "length", "shown", "probability")


@dataclass(frozen=True)
class Answers:
    """The answers of one model to n items, in two orders, of s samples each.

    picks: (n, 2, s) int8; the candidate that was preferred, counted as in the item; NO_ANSWER for a
        text whose answer cannot be read, MISSING where there is no text
    coherent: (n, 2, s) bool; an answer whose scores and totals agree with it
    length: (n, 2, s) int32; characters of the text
    shown: (n, 2, s) int8; the answer as it was shown, 1 or 2, 0 without one
    probability: (n, 2, s) float32; of candidate 1, as in the item; NaN where it is not known
    """

    model: str
    items: Sequence[Item]
    picks: np.ndarray
    coherent: np.ndarray
    length: np.ndarray
    shown: np.ndarray
    probability: np.ndarray

    @cached_property
    def truth(self) -> np.ndarray:
        """(n,) int8: the better candidate; 0 for a tie."""
        return np.array([item.better for item in self.items], dtype=np.int8)

    @cached_property
    def is_tie(self) -> NDArray[np.bool_]:
        return np.equal(self.truth, 0)

    @cached_property
    def missing(self) -> NDArray[np.bool_]:
        """(n, orders, s): there is no text. Orders that were not asked at all are left out."""
        return np.equal(self.asked(self.picks), MISSING)

    @cached_property
    def right(self) -> NDArray[np.bool_]:
        """(n, orders, s): the answer is the better candidate; False for ties."""
        return np.equal(self.asked(self.picks), self._of_items(self.truth))

    @cached_property
    def wrong(self) -> NDArray[np.bool_]:
        """(n, orders, s): the answer is the other candidate; False for ties."""
        return np.equal(self.asked(self.picks), self._of_items(3 - self.truth))

    def _of_items(self, values: np.ndarray) -> np.ndarray:
        """Values of items beside those of texts; no answer has the value of a tie."""
        return np.where(self.is_tie, 3, values)[:, None, None]

    def asked(self, values: np.ndarray) -> np.ndarray:
        """The part of an array of this object that is about orders that were asked."""
        return values[:, (self.picks != MISSING).any(axis=(0, 2))]

    @property
    def samples(self) -> int:
        return int(self.picks.shape[2])

    @property
    def orders(self) -> int:
        return int(self.right.shape[1])

    def take(self, numbers: np.ndarray) -> "Answers":
        """The answers to some of the items, by index or mask."""
        items = [self.items[number] for number in np.arange(len(self.items))[numbers]]
        return replace(self, items=items, **{n: getattr(self, n)[numbers] for n in _ARRAYS})

    def with_samples_of(self, other: "Answers") -> "Answers":
        """The samples of both, about the same items."""
        both = {n: (getattr(self, n), getattr(other, n)) for n in _ARRAYS}
        return replace(self, **{n: np.concatenate(pair, axis=2) for n, pair in both.items()})


def read_answers(folder: Path) -> Answers:
    """The answers in a run folder: of scripts/evaluate.py, or of the client about any data.

    Raises UserError for a folder of no finished inference, for one whose texts were chosen by their
    outcomes, and for rows about other comparisons than the items.
    """
    summary = finished_summary(folder)
    if (folder / ITEMS).exists():
        items = read_items(folder / ITEMS)
    else:
        found = {row["id"]: item_of_row(row) for row in stream_judged_rows(folder)}
        items = [found[key] for key in sorted(found)]
    if not items:
        raise UserError(f"{folder}: no answers")
    numbers: dict[str, list[int]] = defaultdict(list)
    for number, item in enumerate(items):
        numbers[item.key].append(number)
    settings = summary.get("settings", {})
    samples = settings.get("num_samples")
    if not samples:
        samples = 1 + max(row["sample"] for row in stream_judged_rows(folder))
    shape = (len(items), len(ORDERS), int(samples))
    picks: np.ndarray = np.full(shape, MISSING, dtype=np.int8)
    coherent: np.ndarray = np.zeros(shape, dtype=bool)
    length: np.ndarray = np.zeros(shape, dtype=np.int32)
    shown: np.ndarray = np.zeros(shape, dtype=np.int8)
    probability: np.ndarray = np.full(shape, np.nan, dtype=np.float32)
    for row in stream_judged_rows(folder):
        if row["id"] not in numbers:
            raise UserError(
                f"{folder}: a row about a comparison ({row['id'][:12]}...) that is none of "
                f"{ITEMS}; was the folder used for other data?"
            )
        place = ORDERS.index(row["order"]), row["sample"]
        for number in numbers[row["id"]]:
            picks[number, *place] = items[number].named(row)
            coherent[number, *place] = row["coherence"] == "coherent"
            length[number, *place] = len(row["conversations"][-1]["value"])
            shown[number, *place] = row["answer"]
            of_shown = row.get("probability", NOT_KNOWN)
            if of_shown != NOT_KNOWN:
                is_first = items[number].shown_first(row) == 1
                probability[number, *place] = of_shown if is_first else 1 - of_shown
    name = str(settings.get("model", ""))
    return Answers(name, items, picks, coherent, length, shown, probability)
