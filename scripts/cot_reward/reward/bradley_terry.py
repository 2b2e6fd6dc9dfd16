"""Strengths of candidates by their pairwise results: the Bradley-Terry model, with intervals.

Few comparisons of a few candidates are the rule here, and one of them often wins all of its
comparisons: then the maximum likelihood is at infinity, and regularly so where a graph is sparse.
So the likelihood has Firth's penalty (Jeffreys' prior, half the log-determinant of the
information): the estimate is finite wherever the comparisons connect the candidates, it needs no
number to be chosen, and its bias is of a smaller order.

- Bradley, Terry: Rank analysis of incomplete block designs. Biometrika 39 (1952).
- Firth: Bias reduction of maximum likelihood estimates. Biometrika 80 (1993).
- Kosmidis, Firth: Jeffreys-prior penalty, finiteness and shrinkage in binomial-response
  generalized linear models. Biometrika 108 (2021).
- Heinze, Schemper: A solution to the problem of separation in logistic regression. Statistics in
  Medicine 21 (2002): intervals by the profile of the penalized likelihood, for those by standard
  errors are too short where a candidate always wins.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

# Half of the 95% quantile of chi-squared with one degree of freedom, and its root's.
_Z_95 = 1.959963984540054
_MOST_STEPS, _MOST_BOUND_STEPS = 200, 30
_SMALL = 1e-9
# The longest step of a strength, in log-odds.
_LONGEST_STEP = 2.0
# A bound is found when its distance on the root of the deviance is so small.
_BOUND_TOLERANCE = 1e-4
# Numbers in the matrices of the bounds that are worked on together: 128 MB.
_NUMBERS_AT_ONCE = 2**24


@dataclass(frozen=True)
class Strengths:
    """By candidate: strength (log scale), and the ends of its 95% interval."""

    strengths: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


def components(count: int, pairs: Sequence[tuple[int, int]]) -> list[list[int]]:
    """The groups of candidates that the pairs connect; the largest first, then by first index."""
    group = list(range(count))

    def root(i: int) -> int:
        while group[i] != i:
            group[i] = group[group[i]]
            i = group[i]
        return i

    for i, j in pairs:
        group[root(j)] = root(i)
    found: dict[int, list[int]] = {}
    for i in range(count):
        found.setdefault(root(i), []).append(i)
    return sorted(found.values(), key=lambda members: (-len(members), members[0]))


def fit(
    count: int, results: Sequence[tuple[int, int, float, float]], zero: int | None = None
) -> Strengths:
    """The strengths of `count` candidates.

    A result is (i, j, share, weight): of `weight` observations, which need not be whole, the share
    was for i. The mean of the strengths is 0; with `zero` that candidate's strength is 0, and the
    intervals are those of the difference to it. Raises ValueError where the results do not connect
    all candidates: their strengths could not be compared.
    """
    import numpy as np

    if len(components(count, [(i, j) for i, j, _, weight in results if weight > 0])) > 1:
        raise ValueError("the comparisons do not connect all candidates")
    if count < 2:
        return Strengths((0.0,) * count, (0.0,) * count, (0.0,) * count)
    wins = np.zeros((count, count))
    for i, j, share, weight in results:
        wins[i, j] += weight * share
        wins[j, i] += weight * (1 - share)
    # What each interval is of: a strength less the mean of all, or less that of `zero`.
    contrasts = np.eye(count) - (1 / count if zero is None else np.eye(count)[zero])
    model = _Model(wins)
    best = model.maximum(np.zeros((1, count)))[0]
    strengths = contrasts @ best
    found = np.empty((2, count))
    at_once = max(1, _NUMBERS_AT_ONCE // count**2)
    for start in range(0, count, at_once):
        part = slice(start, start + at_once)
        for side, sign in enumerate((-1.0, 1.0)):
            found[side, part] = _bounds(model, best, contrasts[part], sign)
    if zero is not None:
        found[:, zero] = 0.0
    return Strengths(*(tuple(map(float, row)) for row in (strengths, *found)))


class _Model:
    """The penalized likelihood of strengths; all arguments and results are stacks (K, count)."""

    def __init__(self, wins: Any) -> None:
        self._wins, self._weights = wins, wins + wins.T

    def parts(self, strengths: Any) -> tuple[Any, Any, Any]:
        """The penalized log-likelihood (K,), its gradient (K, count), an inverse curvature."""
        import numpy as np

        count = strengths.shape[1]
        gaps = strengths[:, :, None] - strengths[:, None, :]
        log_shares = -np.logaddexp(0.0, -gaps)
        shares = np.exp(log_shares)
        curvature = self._weights * shares * np.swapaxes(shares, 1, 2)
        information = _laplacian(curvature) + 1 / count
        sign_and_log = np.linalg.slogdet(information)
        value = (self._wins * log_shares).sum((1, 2)) + sign_and_log[1] / 2
        inverse = np.linalg.inv(information)
        diagonal = np.diagonal(inverse, axis1=1, axis2=2)
        # The leverage of a pair: what the penalty adds is half a win for each side, so often.
        leverage = curvature * (diagonal[:, :, None] + diagonal[:, None, :] - 2 * inverse)
        weights = self._weights + leverage
        gradient = (self._wins + leverage / 2 - weights * shares).sum(2)
        # With these weights a step is Newton's for the leverages as they are now.
        steps = np.linalg.inv(_laplacian(weights * shares * np.swapaxes(shares, 1, 2)) + 1 / count)
        return value, gradient, steps

    def maximum(self, strengths: Any, contrast: Any = None, values: Any = None) -> Any:
        """The strengths of the greatest likelihood, from a start.

        With `contrast` (K, count) and `values` (K,): among those of which the contrast has the
        value; each row of `contrast` sums to 0.
        """
        import numpy as np

        strengths = strengths.copy()
        for _ in range(_MOST_STEPS):
            _, gradient, steps = self.parts(strengths)
            step = np.einsum("kij,kj->ki", steps, gradient)
            if contrast is not None:
                along = np.einsum("kij,kj->ki", steps, contrast)
                missing = values - (contrast * strengths).sum(1)
                excess = (contrast * step).sum(1) - missing
                step -= (excess / (contrast * along).sum(1))[:, None] * along
            longest = np.abs(step).max(1, keepdims=True)
            strengths += step * np.minimum(1.0, _LONGEST_STEP / np.maximum(longest, _SMALL))
            strengths -= strengths.mean(1, keepdims=True)
            if longest.max() < _SMALL * 100:
                break
        return strengths


def _laplacian(weights: Any) -> Any:
    import numpy as np

    found = -weights
    index = np.arange(weights.shape[1])
    found[:, index, index] = weights.sum(2) - weights[:, index, index]
    return found


def _bounds(model: _Model, best: Any, contrasts: Any, sign: float) -> Any:
    """Where the profile of each contrast has fallen to the end of its interval, on one side.

    The signed root of the deviance is nearly straight, so that the secant finds the end in a few
    steps; a bracket keeps it from leaving.
    """
    import numpy as np

    rows = len(contrasts)
    top, _, steps = model.parts(best[None])
    centre = contrasts @ best
    spread = np.sqrt(np.maximum(np.einsum("ki,ij,kj->k", contrasts, steps[0], contrasts), _SMALL))
    inner, inner_root = np.zeros(rows), np.zeros(rows)
    outer, outer_root = np.full(rows, np.inf), np.full(rows, np.inf)
    distance = _Z_95 * spread
    strengths = np.repeat(best[None], rows, 0)
    for _ in range(_MOST_BOUND_STEPS):
        strengths = model.maximum(strengths, contrasts, centre + sign * distance)
        value = model.parts(strengths)[0]
        root = np.sqrt(np.maximum(2 * (top[0] - value), 0.0))
        if np.abs(root - _Z_95).max() < _BOUND_TOLERANCE:
            break
        inside = root < _Z_95
        inner, inner_root = np.where(inside, distance, inner), np.where(inside, root, inner_root)
        outer, outer_root = np.where(inside, outer, distance), np.where(inside, outer_root, root)
        with np.errstate(all="ignore"):
            between = inner + (outer - inner) * (_Z_95 - inner_root) / (outer_root - inner_root)
            beyond = distance * np.clip(_Z_95 / np.maximum(root, _SMALL), 1.1, 2.0)
        proposed = np.where(np.isfinite(outer), between, beyond)
        distance = np.where(np.abs(root - _Z_95) < _BOUND_TOLERANCE, distance, proposed)
    return centre + sign * distance
