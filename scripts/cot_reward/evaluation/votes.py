"""Accuracy by votes: of k samples, both orders together, drawn from the samples that are there.

Instead of one draw of k samples, the mean over all draws is computed, which adds no noise.
"""

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from math import comb
from typing import NamedTuple

import numpy as np

from cot_reward.evaluation.answers import NO_ANSWER, Answers


class Vote(NamedTuple):
    """What the majority of votes is, as shares of all draws: they add up to 1."""

    right: float
    undecided: float
    wrong: float


def votes_at(answers: Answers, k: int) -> np.ndarray:
    """Right, undecided and wrong shares of each item by k samples: (items, 3).

    A sample has one vote in each order that was asked. Answers that cannot be read abstain; as many
    votes for both are undecided. NaN for items with fewer than k samples that are there in every
    order, and for ties.
    """
    found = np.full((len(answers.items), 3), np.nan)
    # (items, samples): votes for the right candidate less those for the other.
    margins = answers.right.astype(np.int8) - answers.wrong.astype(np.int8)
    there = ~answers.missing.any(axis=1)
    for number in np.flatnonzero(~answers.is_tie & (there.sum(axis=1) >= k)):
        counts: Counter[int] = Counter(margins[number].sum(axis=0)[there[number]].tolist())
        found[number] = _vote(tuple(sorted(counts.items())), k)
    return found


@lru_cache(maxsize=2**16)
def _vote(margins: tuple[tuple[int, int], ...], k: int) -> Vote:
    """The vote of k of the samples; `margins` are (margin of a sample, how many have it)."""
    # (samples drawn, sum of their margins) -> number of draws
    draws = {(0, 0): 1}
    for margin, count in margins:
        further: Counter[tuple[int, int]] = Counter()
        for (drawn, total), ways in draws.items():
            for taken in range(min(count, k - drawn) + 1):
                further[drawn + taken, total + taken * margin] += ways * comb(count, taken)
        draws = further
    of_k = {total: ways for (drawn, total), ways in draws.items() if drawn == k}
    every = sum(of_k.values())
    right = sum(ways for total, ways in of_k.items() if total > 0)
    undecided = of_k.get(0, 0)
    return Vote(right / every, undecided / every, (every - right - undecided) / every)


def pass_at(answers: Answers, k: int) -> np.ndarray:
    """The chance that one of k samples is right, the mean of the orders: (items,).

    The unbiased estimate of Chen et al. 2021 (Codex). NaN for items with fewer than k samples in
    an order, and for ties.
    """
    there = ~answers.missing
    samples, right = there.sum(axis=2), (answers.right & there).sum(axis=2)
    found = np.full(samples.shape, np.nan)
    for place in zip(*np.nonzero(samples >= k), strict=True):
        n, c = int(samples[place]), int(right[place])
        found[place] = 1 - comb(n - c, k) / comb(n, k)
    found[answers.is_tie] = np.nan
    return found.mean(axis=1)


def powers(most: int) -> Sequence[int]:
    """1, 2, 4, ... up to `most`."""
    return [2**n for n in range(most.bit_length()) if 2**n <= most]


def majority(picks: np.ndarray) -> np.ndarray:
    """The candidate with the most of an item's votes, NO_ANSWER where neither has: (items,).

    `picks`: (items, votes), each 1, 2, or anything else for no vote.
    """
    first, second = (picks == 1).sum(axis=1), (picks == 2).sum(axis=1)
    return np.where(first > second, 1, np.where(second > first, 2, NO_ANSWER))
