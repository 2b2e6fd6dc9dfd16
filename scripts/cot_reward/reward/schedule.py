"""Which pairs of candidates are compared: all of them, or a bounded number.

A bounded schedule is a union of random cycles through all candidates: each first cycle of a budget
connects everybody with the fewest comparisons, every candidate has as many as any other, give or
take two, and such graphs are nearly the best expanders (Friedman, A proof of Alon's second
eigenvalue conjecture, 2008). The error of Bradley-Terry strengths follows the spectral gap of the
graph of comparisons (Shah et al., Estimation from pairwise comparisons: sharp minimax bounds with
topology dependence, JMLR 17, 2016).
"""

import random
from itertools import combinations

Pairs = list[tuple[int, int]]


def all_pairs(count: int) -> Pairs:
    """Every pair once; each candidate comes first in half of its pairs, give or take one."""
    return [(i, j) if (i + j) % 2 else (j, i) for i, j in combinations(range(count), 2)]


def pairs_of(count: int, most: int | None = None, seed: int = 0) -> Pairs:
    """The pairs of `count` candidates, at most `most` of them (None: all), in a fixed order.

    They connect all candidates. Raises ValueError where `most` pairs cannot.
    """
    every = all_pairs(count)
    if most is None or most >= len(every):
        return every
    if most < count - 1:
        raise ValueError(
            f"{most} comparisons do not connect {count} candidates; at least {count - 1} are needed"
        )
    draw = random.Random(f"{seed} {count}")
    found: dict[frozenset[int], tuple[int, int]] = {}
    # Beyond half of all pairs nearly every cycle holds known ones.
    tries = 0
    while len(found) < most and tries < 4 * count:
        tries += 1
        cycle = draw.sample(range(count), count)
        for pair in zip(cycle, cycle[1:] + cycle[:1], strict=True):
            # Along a cycle each candidate comes first once.
            if len(found) < most:
                found.setdefault(frozenset(pair), pair)
    rest = [pair for pair in every if frozenset(pair) not in found]
    return [*found.values(), *draw.sample(rest, most - len(found))]
