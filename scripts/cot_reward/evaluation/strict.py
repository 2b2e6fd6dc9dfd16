"""The strict score of a model on a benchmark: both orders, what cannot be read is wrong."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from cot_reward.evaluation.answers import NO_ANSWER, Answers
from cot_reward.evaluation.calibration import calibration
from cot_reward.evaluation.clusters import Clusters, interval, mean
from cot_reward.evaluation.votes import pass_at, powers, votes_at
from cot_reward.stats import wilson

OVERALL = "overall"
MACRO = "macro"


def item_values(answers: Answers) -> dict[str, np.ndarray]:
    """Metric -> its share for each item, NaN where the item does not count: (items,) each.

    accuracy: of all texts in both orders; a text without an answer is wrong; ties do not count
    right_in_both: of samples, both orders are right (NaN when one order was asked)
    survives_swap: of samples, both orders name the same candidate
    answers_1: of the answers, those that name the candidate that is shown first
    unparsed: of the texts, those without an answer that can be read
    coherent: of the texts, those whose scores and totals agree with their answer
    """
    missing, right = answers.missing, answers.right
    there = ~missing
    picks = answers.asked(answers.picks)
    read = np.greater(picks, NO_ANSWER)
    values = {
        "accuracy": _mean(right, there),
        "unparsed": _mean(~read, there),
        "answers_1": _mean(np.equal(answers.asked(answers.shown), 1), read),
        "coherent": _mean(answers.asked(answers.coherent), there),
    }
    values["accuracy"][answers.is_tie] = np.nan
    if answers.orders == 2:
        whole = there.all(axis=1)
        same = np.equal(picks[:, 0], picks[:, 1]) & read.all(axis=1)
        values["survives_swap"] = _mean(same, whole)
        values["right_in_both"] = _mean(right.all(axis=1), whole)
        values["right_in_both"][answers.is_tie] = np.nan
    return values


def strict_score(answers: Answers) -> dict[str, Any]:
    """The strict score of a run, by group, and over all items.

    `groups`: group -> metrics, and OVERALL (all items alike) and MACRO (the mean of the groups).
    Each metric has its share and 95% cluster bootstrap interval; `vote` (the majority of all
    samples, both orders together) has a Wilson interval as well, as an item has one vote.
    """
    clusters = Clusters([item.cluster for item in answers.items])
    values = item_values(answers)
    votes = votes_at(answers, answers.samples)
    values |= {"vote": votes[:, 0], "vote_undecided": votes[:, 1]}
    masks = group_masks(answers)
    names = (*masks, OVERALL)
    groups: dict[str, dict[str, Any]] = {name: {} for name in (*names, MACRO)}
    # For each metric a column of each group, and one of all items.
    tables = {
        metric: np.column_stack(
            [*(np.where(mask, column, np.nan) for mask in masks.values()), column]
        )
        for metric, column in values.items()
    }
    draws = clusters.means(np.hstack(list(tables.values())))
    for place, (metric, table) in enumerate(tables.items()):
        of_metric = draws[:, place * len(names) : (place + 1) * len(names)]
        for number, name in enumerate(names):
            groups[name][metric] = _figure(table[:, number], of_metric[:, number])
            if metric == "vote":
                counted = table[:, number][~np.isnan(table[:, number])]
                low, high = wilson(float(counted.sum()), len(counted))
                groups[name][metric] |= {"wilson_low": low, "wilson_high": high}
        low, high = interval(of_metric[:, :-1].mean(axis=1))
        means = [groups[name][metric]["share"] for name in masks]
        share = float(np.mean(means))
        groups[MACRO][metric] = {"share": share, "low": low, "high": high, "items": len(means)}
    texts = ~answers.missing
    return {
        "model": answers.model,
        "items": len(answers.items), "ties": int(answers.is_tie.sum()),
        "clusters": clusters.count, "samples": answers.samples, "orders": answers.orders,
        "texts": int(texts.sum()), "missing_texts": int((~texts).sum()),
        "mean_characters": float(answers.asked(answers.length)[texts].mean()),
        "groups": groups,
        "by_votes": by_votes(answers),
        "by_probability": calibration(answers),
    }  # fmt: skip


def by_votes(answers: Answers) -> dict[str, dict[str, float]]:
    """k -> the shares of right and undecided votes by k samples, and pass@k, over all items."""
    found = {}
    for k in powers(answers.samples):
        votes, passed = votes_at(answers, k), pass_at(answers, k)
        if np.isnan(votes).all():
            continue
        found[str(k)] = {
            "right": mean(votes[:, 0]),
            "undecided": mean(votes[:, 1]),
            "pass": mean(passed),
            "items": int((~np.isnan(votes[:, 0])).sum()),
        }
    return found


def group_masks(answers: Answers) -> Mapping[str, np.ndarray]:
    """Group -> which items are in it, the groups in the order of their names."""
    groups = np.array([item.group for item in answers.items], dtype=object)
    return {name: groups == name for name in sorted(set(groups))}


def _figure(values: np.ndarray, draws: np.ndarray) -> dict[str, float]:
    low, high = interval(draws)
    return {
        "share": mean(values), "low": low, "high": high, "items": int((~np.isnan(values)).sum()),
    }  # fmt: skip


def _mean(hits: np.ndarray, of: np.ndarray) -> np.ndarray:
    """The share of hits for each item, NaN where there is nothing to count."""
    axes = tuple(range(1, of.ndim))
    counted = of.sum(axis=axes)
    with np.errstate(invalid="ignore"):
        found: np.ndarray = (hits & of).sum(axis=axes) / np.where(counted, counted, np.nan)
    return found
