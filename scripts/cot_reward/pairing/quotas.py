"""How many pairs to keep so that they are balanced and as many as possible.

Integer programmes over a few numbers, solved exactly. Balanced: two numbers differ by at most
max(1, 1% of all pairs).
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cot_reward.errors import UserError

# For one programme; programmes of real data take milliseconds.
_TIME_LIMIT_SECONDS = 300

# The chosen answer (1, 2), and which text is longer (1: chosen, -1: rejected, 0: neither).
Cell = tuple[int, int]


def quotas(
    cells: Mapping[Cell, int], positions: bool, lengths: bool, limit: int | None = None
) -> dict[Cell, int]:
    """How many pairs of each cell to keep: as many as possible, balanced, at most `limit` in all.

    An integer programme of at most six unknowns.
    """
    import numpy as np
    from scipy.optimize import Bounds, LinearConstraint, milp

    keys = sorted(cells)
    most = np.array([cells[key] for key in keys], dtype=float)
    total = np.ones(len(keys))
    signs = []
    if positions:
        signs.append(np.array([{1: 1, 2: -1}.get(answer, 0) for answer, _ in keys]))
    if lengths:
        signs.append(np.array([longer for _, longer in keys]))
    best: dict[Cell, int] = {}
    limits = [LinearConstraint(total, -np.inf, limit)] if limit is not None else []
    for even in _evenness(signs, total):
        found = milp(
            -total, integrality=total, bounds=Bounds(0, most),
            constraints=[*limits, even] if signs else limits, options={"mip_rel_gap": 0},
        )  # fmt: skip
        kept = dict(zip(keys, (round(value) for value in found.x), strict=True))
        if not best or sum(kept.values()) > sum(best.values()):
            best = kept
    return best


def plan(sizes: Mapping[str, int], count: int, positions: bool) -> dict[str, dict[Cell, int]]:
    """How many pairs of each cell all comparisons of a kind give: as many as possible, balanced.

    `sizes` is the number of comparisons by kind. A kind is "ANSWER LONGER OFFERED USED,...", an
    entry for each cell. A comparison gives at most `count` pairs. Of the best plans, this is one
    that leaves the most used pairs in use. An integer programme over kinds and cells.

    Raises UserError when no plan is found in time.
    """
    import numpy as np
    from scipy import sparse
    from scipy.optimize import Bounds, LinearConstraint, milp

    cells: list[tuple[Any, ...]] = [
        (kind, *map(int, cell.split()), size)
        for kind, size in sizes.items()
        for cell in kind.split(",")
    ]
    # The unknowns: for each cell how many pairs are given, then how many of those were used before.
    number = len(cells)
    most = np.array(
        [offered * size for *_, offered, _, size in cells]
        + [used * size for *_, used, size in cells],
        dtype=float,
    )
    given: Any = np.repeat([1.0, 0.0], number)
    row_of = {kind: row for row, kind in enumerate(sizes)}
    of_kind = sparse.csr_matrix(
        (np.ones(number), ([row_of[cell[0]] for cell in cells], range(number))),
        shape=(len(row_of), 2 * number),
    )
    fixed = [
        LinearConstraint(of_kind, -np.inf, [count * size for size in sizes.values()]),
        # A pair that stays in use is given.
        LinearConstraint(
            sparse.hstack([-sparse.identity(number), sparse.identity(number)]), -np.inf, 0
        ),
    ]
    signs = [np.array([longer for _, _, longer, *_ in cells] + [0] * number)]
    if positions:
        signs.append(np.array([{1: 1, 2: -1}[cell[1]] for cell in cells] + [0] * number))

    def solve(goal: Any, constraints: list[Any]) -> Any:
        found = milp(
            -goal, integrality=np.ones(2 * number), bounds=Bounds(0, most),
            constraints=[*fixed, *constraints],
            options={"mip_rel_gap": 0, "time_limit": _TIME_LIMIT_SECONDS},
        )  # fmt: skip
        # A plan that is not proven best depends on the speed of the machine, so it is not used.
        if found.status != 0:
            raise UserError(
                f"--balance-lengths: no choice was found in {_TIME_LIMIT_SECONDS} s, with "
                f"{len(sizes)} kinds of comparisons; lower --pairs-per-comparison"
            )
        return found.x

    total, rules = -1, list[Any]()
    for even in _evenness(signs, given):
        found = solve(given, [even])
        if (kept := round(float(found @ given))) > total:
            total, rules = kept, [even]
    rules.append(LinearConstraint(given, total, np.inf))
    best = solve(1 - given, rules)
    chosen: dict[str, dict[Cell, int]] = defaultdict(dict)
    for (kind, answer, longer, *_), value in zip(cells, best, strict=False):
        chosen[kind][answer, longer] = round(float(value))
    return dict(chosen)


def _evenness(signs: Sequence[Any], total: Any) -> Iterator[Any]:
    """Constraints that keep every sum of signs within 1, or else within 1% of the total.

    "At most 1" comes first: "at most 1%" is used only where it keeps more pairs.
    """
    import numpy as np
    from scipy.optimize import LinearConstraint

    for loose in range(2 ** len(signs)):
        rows, highs = [], []
        for number, sign in enumerate(signs):
            # In integers: 100 times the difference is at most the total, or at most 100.
            percent = loose >> number & 1
            rows += [100 * sign - percent * total, -100 * sign - percent * total]
            highs += [100 * (1 - percent)] * 2
        yield LinearConstraint(np.array(rows), -np.inf, highs) if rows else ()
