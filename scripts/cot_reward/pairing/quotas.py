"""How many pairs to keep so that they are balanced and as many as possible.

Integer programmes, solved exactly. Balanced: two numbers differ by at most max(1, 1% of all pairs).
Every stratum is balanced by itself. The strata of a split are balanced together, too, so that the
leans of one pair that many small strata may have do not add up.
"""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from cot_reward.errors import UserError
from cot_reward.pairing.limits import Stratum

# For one programme; programmes of real data take milliseconds to seconds.
_TIME_LIMIT_SECONDS = 300
# From this number of pairs on, 1% is at least one pair.
_PAIRS_FOR_PERCENT = 100

# The chosen answer (1, 2), and which text is longer (1: chosen, -1: rejected, 0: neither).
Cell = tuple[int, int]


class Unknown(NamedTuple):
    """A number of pairs of one stratum and cell that is to be found, from 0 to `most`."""

    stratum: Stratum
    cell: Cell
    most: int


class AtMost(NamedTuple):
    """The unknowns with these indices have at most this sum."""

    unknowns: Sequence[int]
    limit: int


def quotas(
    cells_of: Mapping[Stratum, Mapping[Cell, int]],
    positions: bool,
    lengths: bool,
    limits: Mapping[Stratum, int] | None = None,
) -> dict[Stratum, dict[Cell, int]]:
    """How many pairs of each cell to keep: as many as possible, balanced, at most `limits` in all.

    Raises UserError when no answer is found in time.
    """
    kept: dict[Stratum, dict[Cell, int]] = {stratum: {} for stratum in cells_of}
    for strata in _by_split(cells_of):
        unknowns, at_most = list[Unknown](), list[AtMost]()
        for stratum in strata:
            first = len(unknowns)
            unknowns += [
                Unknown(stratum, cell, most) for cell, most in sorted(cells_of[stratum].items())
            ]
            if limits is not None:
                at_most.append(AtMost(range(first, len(unknowns)), limits[stratum]))
        for unknown, number in zip(
            unknowns, most_pairs(unknowns, positions, lengths, at_most), strict=True
        ):
            kept[unknown.stratum][unknown.cell] = number
    return kept


def plan(
    kinds_of: Mapping[Stratum, Mapping[str, int]], count: int, positions: bool
) -> dict[Stratum, dict[str, dict[Cell, int]]]:
    """How many pairs of each cell all comparisons of a kind give: as many as possible, balanced.

    `kinds_of` has the number of comparisons by stratum and kind. A kind is "ANSWER LONGER OFFERED
    USED,...", an entry for each cell. A comparison gives at most `count` pairs. Of the best plans,
    this is one that leaves the most used pairs in use. Raises UserError when no plan is found in
    time.
    """
    given: dict[Stratum, dict[str, dict[Cell, int]]] = {stratum: {} for stratum in kinds_of}
    for strata in _by_split(kinds_of):
        unknowns, at_most = list[Unknown](), list[AtMost]()
        kind_of, stays_used = list[str](), list[int]()
        for stratum in strata:
            for kind, size in sorted(kinds_of[stratum].items()):
                first = len(unknowns)
                for entry in kind.split(","):
                    answer, longer, offered, used = map(int, entry.split())
                    for is_used, number in ((1, used), (0, offered - used)):
                        unknowns.append(Unknown(stratum, (answer, longer), number * size))
                        kind_of.append(kind)
                        stays_used.append(is_used)
                at_most.append(AtMost(range(first, len(unknowns)), count * size))
        numbers = most_pairs(unknowns, positions, True, at_most, stays_used)
        for unknown, kind, number in zip(unknowns, kind_of, numbers, strict=True):
            cells = given[unknown.stratum].setdefault(kind, {})
            cells[unknown.cell] = cells.get(unknown.cell, 0) + number
    return given


def _by_split(strata: Iterable[Stratum]) -> list[list[Stratum]]:
    members: dict[str, list[Stratum]] = defaultdict(list)
    for stratum in sorted(strata):
        members[stratum[0]].append(stratum)
    return list(members.values())


def most_pairs(
    unknowns: Sequence[Unknown],
    positions: bool,
    lengths: bool,
    at_most: Sequence[AtMost] = (),
    preferred: Sequence[int] = (),
) -> list[int]:
    """The numbers with the largest sum that are balanced and within the limits.

    Balanced are each stratum, all strata together, and those of each kind of pairs. Of the best
    answers, this is one with the largest sum of `preferred` (a factor for each unknown) times the
    numbers. Raises UserError when no answer is found in time.
    """
    if not unknowns:
        return []
    import numpy as np
    from scipy import sparse
    from scipy.optimize import Bounds, LinearConstraint, milp

    def rows(members: Sequence[Sequence[int]]) -> Any:
        """A row for each list of indices, with a 1 at each."""
        lengths_of_rows = list(map(len, members))
        indices = np.fromiter((i for of in members for i in of), dtype=np.int64)
        starts = np.concatenate([[0], np.cumsum(lengths_of_rows)])
        shape = (len(members), len(unknowns))
        return sparse.csr_matrix((np.ones(len(indices)), indices, starts), shape=shape)

    fixed = []
    if at_most:
        highs = [rule.limit for rule in at_most]
        fixed.append(LinearConstraint(rows([rule.unknowns for rule in at_most]), -np.inf, highs))
    signs = []
    if positions:
        signs.append([{1: 1, 2: -1}.get(unknown.cell[0], 0) for unknown in unknowns])
    if lengths:
        signs.append([unknown.cell[1] for unknown in unknowns])
    groups = rows(_groups([unknown.stratum for unknown in unknowns]))

    def balanced(by_percent: Any) -> list[Any]:
        """Each difference is at most 1 or, for groups of which this is true, 1% of the group."""
        # In integers: 100 times the difference is at most the total, or at most 100.
        totals = sparse.diags(by_percent.astype(float)) @ groups
        highs = 100 * (1 - by_percent)
        return [
            LinearConstraint(side * 100 * groups.multiply(np.array(sign)) - totals, -np.inf, highs)
            for sign in signs
            for side in (1, -1)
        ]

    most = Bounds(0, np.array([unknown.most for unknown in unknowns], dtype=float))
    every: Any = np.ones(len(unknowns))

    def solve(goal: Any, constraints: list[Any]) -> Any:
        found = milp(
            -goal, integrality=every, bounds=most, constraints=[*fixed, *constraints],
            options={"mip_rel_gap": 0, "time_limit": _TIME_LIMIT_SECONDS},
        )  # fmt: skip
        # An answer that is not proven best depends on the speed of the machine, so it is not used.
        if found.status != 0:
            raise UserError(
                f"no balanced choice was found in {_TIME_LIMIT_SECONDS} s, with {len(unknowns):,} "
                "numbers to choose; lower --pairs-per-comparison, or leave out --balance-lengths"
            )
        return np.round(found.x)

    rules = balanced(np.zeros(groups.shape[0], dtype=int))
    numbers = solve(every, rules)
    # "At most 1%" admits more than "at most 1" where there are many pairs. It is used only where it
    # keeps more pairs.
    by_percent = (groups @ numbers >= _PAIRS_FOR_PERCENT).astype(int)
    if signs and by_percent.any():
        looser_rules = balanced(by_percent)
        looser = solve(every, looser_rules)
        if looser.sum() > numbers.sum():
            rules, numbers = looser_rules, looser
    if len(preferred):
        as_many = LinearConstraint(every, numbers.sum(), np.inf)
        numbers = solve(np.array(preferred, dtype=float), [*rules, as_many])
    return [int(number) for number in numbers]


def _groups(strata: Sequence[Stratum]) -> list[list[int]]:
    """The indices of the unknowns that are balanced together, by the stratum of each unknown."""
    members: dict[Hashable, list[int]] = defaultdict(list)
    for index, stratum in enumerate(strata):
        for group in {stratum, "all", ("kind", stratum[3])}:
            members[group].append(index)
    # Groups with the same members are one.
    return [list(group) for group in sorted(set(map(tuple, members.values())))]
