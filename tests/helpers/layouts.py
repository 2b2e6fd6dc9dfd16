"""Hand-made layouts of totals (`layouts.json`), and the finding that each of their texts must have.

`N` stands for the task's noun, `<a1>` and `<a2>` for the scores of the first candidate, `<A>` for
its total; `<b1>`, `<b2>` and `<B>` are the second one's.
"""

import json
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

from helpers.texts import thought

LAYOUTS: dict[str, dict[str, str]] = json.loads(
    Path(__file__).with_name("layouts.json").read_text(encoding="utf-8")
)
# Two scores of each candidate: the second is better, the first is better, a tie, decimals.
SCORES = (
    ("3", "4", "8", "9"),
    ("9", "8", "4", "3"),
    ("4", "5", "6", "3"),
    ("7.5", "8", "6", "9.25"),
)


class Case(NamedTuple):
    """A text, the noun of its task, its answer (1 or 2) and the right finding."""

    layout: str
    text: str
    noun: str
    answer: int
    finding: str


def cases() -> Iterator[Case]:
    """Each layout with each of SCORES and both answers; every second text is about videos."""
    for group, layouts in LAYOUTS.items():
        for name, layout in layouts.items():
            for number, scores in enumerate(SCORES):
                noun = "Image" if number % 2 == 0 or "Image" in group else "Video"
                a1, a2, b1, b2 = map(Decimal, scores)
                first, second = a1 + a2, b1 + b2
                reasoning = layout.replace("N", noun)
                for mark, value in zip(
                    ("<a1>", "<a2>", "<b1>", "<b2>", "<A>", "<B>"),
                    (*scores, str(first), str(second)),
                    strict=True,
                ):
                    reasoning = reasoning.replace(mark, value)
                for answer in (1, 2):
                    supported = (first > second) == (answer == 1)
                    finding = "coherent" if supported else "contradicts"
                    if group == "no totals":
                        finding = "no_totals"
                    elif first == second:
                        finding = "tie"
                    yield Case(name, thought(reasoning, answer, noun), noun, answer, finding)
