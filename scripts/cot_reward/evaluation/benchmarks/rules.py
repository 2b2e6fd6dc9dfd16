"""What the official scores share: shares of groups, and overall scores that follow from them."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from cot_reward.evaluation.answers import Answers
from cot_reward.evaluation.benchmarks.form import Official


def by_groups(
    answers: Answers,
    is_right: np.ndarray,
    counts_in: np.ndarray,
    rule: str,
    overall_is: str = "items",
    groups: Sequence[str] = (),
    counts: Mapping[str, int] | None = None,
) -> Official:
    """The share of right items in each group (in this order), and overall.

    `is_right`, `counts_in`: (items,) bool. `overall_is` "items": all items alike; "groups": the
    mean of the groups.
    """
    right: dict[str, int] = defaultdict(int)
    of: dict[str, int] = defaultdict(int)
    for number, item in enumerate(answers.items):
        if counts_in[number]:
            of[item.group] += 1
            right[item.group] += bool(is_right[number])
    names = [name for name in (*groups, *sorted(set(of) - set(groups))) if of[name]]
    shares = {name: right[name] / of[name] for name in names}
    total = sum(of.values())
    overall = float("nan")
    if total:
        of_items = overall_is == "items"
        overall = sum(right.values()) / total if of_items else float(np.mean(list(shares.values())))
    return Official(rule, shares, overall, overall_is, dict(counts or {}))


def first_answers(answers: Answers) -> np.ndarray:
    """The answer of each item's first text in the published order: (items,), as Answers.picks."""
    picks: np.ndarray = answers.asked(answers.picks)[:, 0, 0]
    return picks
