"""The scores that a text gives in each dimension, by the judge's own readers of scores.

They are for showing: no verdict depends on them. What cannot be told apart for certain is left out.
"""

import re
from collections import defaultdict
from decimal import Decimal
from functools import lru_cache

from cot_reward.judge.announced import score_places
from cot_reward.judge.json_form import named_scores
from cot_reward.judge.stated import NOUNS
from cot_reward.judge.totals import totals_in
from cot_reward.judge.verdicts import reasoning_of
from cot_reward.records import Form, Task

# (of candidate 1, of candidate 2), as presented.
Both = tuple[float, float]
# A name of a dimension: words, at most so long.
_NAME = r"(?P<name>[^\W\d][^:：;|\n.!?\d]{0,59}?)"
# Runs are bounded, so that no text takes long.
_OPENING = r"[ \t>*#_+•-]{0,20}(?:\d{1,2}[.)、]\s?)?[ \t*_]{0,8}"


def read_dimensions(text: str, task: Task, form: Form) -> tuple[dict[str, Both], Both | None]:
    """Dimension -> the scores of both candidates; and their totals, None where they are not stated.

    The text is well-formed (`judge` finds an answer). Scores are as presented, and as they are
    written, whatever their maximum. In a chain of thought a dimension is what stands before its
    scores with a colon ("1. Aesthetics: Image 1 (8/10)"); one without exactly one score of each
    candidate is left out. In JSON it is a category, with the mean of its scores; totals are their
    sums there.
    """
    if form == "json":
        return _of_json(text, task)
    reasoning = reasoning_of(text) if form == "think" else None
    return _of_reasoning(reasoning, task.noun) if reasoning is not None else ({}, None)


def _of_json(text: str, task: Task) -> tuple[dict[str, Both], Both | None]:
    columns: dict[str, list[tuple[Decimal, Decimal]]] = defaultdict(list)
    for name, first, second in named_scores(text, task):
        columns[name].append((first, second))
    if not columns:
        return {}, None
    sums = {
        name: tuple(sum(column, Decimal(0)) for column in zip(*pairs, strict=True))
        for name, pairs in columns.items()
    }
    means = {
        name: (float(first / len(columns[name])), float(second / len(columns[name])))
        for name, (first, second) in sums.items()
        if name
    }
    totals = [float(sum(column)) for column in zip(*sums.values(), strict=True)]
    return means, (totals[0], totals[1])


def _of_reasoning(reasoning: str, noun: str) -> tuple[dict[str, Both], Both | None]:
    totals, before = totals_in(reasoning, noun)
    # Dimension -> candidate -> its scores.
    found: dict[str, dict[int, list[Decimal]]] = {}
    names: dict[str, str] = {}
    current, end = "", 0
    for candidates, score, (start, stop) in score_places(before, noun):
        if name := _heading(before[end:start], noun):
            current = name.casefold()
            # A dimension that comes again is one that corrects itself, or two of one name.
            names.setdefault(current, name)
        end = stop
        for candidate in candidates:
            found.setdefault(current, {1: [], 2: []})[candidate].append(score)
    scores = {
        names[key]: (float(of[1][0]), float(of[2][0]))
        for key, of in found.items()
        if key and len(of[1]) == len(of[2]) == 1
    }
    stated = (float(totals[1].total), float(totals[2].total)) if totals else None
    return scores, stated


def _heading(gap: str, noun: str) -> str:
    """The last name of a dimension between two scores; "" for none."""
    at_line, inline = _patterns(noun)
    found = inline.search(gap)
    if found is None:
        found = next(reversed(list(at_line.finditer(gap))), None)
    return " ".join(found["name"].split()) if found else ""


@lru_cache(maxsize=8)
def _patterns(noun: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """A heading at the beginning of a line, and one directly before a candidate with a score."""
    # A line about one candidate ("Image 1 blurred: ...") is no heading.
    no_candidate = rf"(?!(?:the\s+)?(?:{NOUNS[noun]})s?\b|both\b)"
    name = (
        rf"{_OPENING}{no_candidate}{_NAME}[ \t*_]{{0,8}}(?:\([^()\n]{{1,60}}\)[ \t*_]{{0,8}})?[:：]"
    )
    return (
        re.compile(rf"(?:\A|(?<=\n)){name}", re.IGNORECASE),
        re.compile(
            rf"(?:\A|(?<=\n)|(?<=[.;!?。；]\s)|(?<=[。；])){name}[\s*_-]{{0,20}}\Z", re.IGNORECASE
        ),
    )
