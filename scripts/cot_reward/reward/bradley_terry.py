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
# The longest step of a strength, in log-odds, and the one that is small enough: of the estimate,
# and of the strengths on the way to a bound, whose likelihood is flat there.
_LONGEST_STEP, _LAST_STEP, _LAST_BOUND_STEP = 2.0, 1e-8, 2e-3
# A bound is found when the root of the deviance is so near to that of the interval's end.
_BOUND_TOLERANCE = 0.005
# The profile of more candidates would take more than some seconds.
MOST_PROFILED = 40


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

    A result is (i, j, share, weight): of `weight` observations (at least 1, and not always a whole
    number) the share was for i. The mean of the strengths is 0; with `zero` that candidate's
    strength is 0, and the intervals are those of the difference to it. Of more than MOST_PROFILED
    candidates the intervals are those of standard errors. Raises ValueError where the results do
    not connect all candidates (their strengths could not be compared), and for a smaller weight.
    """
    import numpy as np

    if any(weight < 1 for *_, weight in results):
        raise ValueError("a result has a weight below 1")
    if len(components(count, [(i, j) for i, j, _, _ in results])) > 1:
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
    best = model.maximum(np.zeros((1, count)), _LAST_STEP)[0]
    strengths = contrasts @ best
    half = _Z_95 * model.spreads(best, contrasts)
    low, high = strengths - half, strengths + half
    if count <= MOST_PROFILED:
        others = [i for i in range(count) if i != zero]
        low[others] = _bounds(model, best, contrasts[others], -1.0)
        high[others] = _bounds(model, best, contrasts[others], 1.0)
    if zero is not None:
        low[zero] = high[zero] = 0.0
    return Strengths(*(tuple(map(float, row)) for row in (strengths, low, high)))


class _Model:
    """The penalized likelihood of strengths; all arguments and results are stacks (K, count)."""

    def __init__(self, wins: Any) -> None:
        self._wins, self._weights = wins, wins + wins.T

    def value(self, strengths: Any) -> Any:
        """The penalized log-likelihood (K,)."""
        import numpy as np

        log_shares, curvature = self._shares(strengths)
        information = _laplacian(curvature) + 1 / strengths.shape[1]
        return (self._wins * log_shares).sum((1, 2)) + np.linalg.slogdet(information)[1] / 2

    def slope(self, strengths: Any) -> tuple[Any, Any]:
        """The gradient (K, count) of the value, and the inverse (K, count, count) of a curvature.

        What the penalty adds is half a win for each side of a pair, as often as the leverage of the
        pair says; the curvature is that of a likelihood with these leverages.
        """
        import numpy as np

        count = strengths.shape[1]
        log_shares, curvature = self._shares(strengths)
        shares = np.exp(log_shares)
        inverse = np.linalg.inv(_laplacian(curvature) + 1 / count)
        diagonal = np.diagonal(inverse, axis1=1, axis2=2)
        leverage = curvature * (diagonal[:, :, None] + diagonal[:, None, :] - 2 * inverse)
        weights = self._weights + leverage
        gradient = (self._wins + leverage / 2 - weights * shares).sum(2)
        steps = np.linalg.inv(_laplacian(weights * shares * np.swapaxes(shares, 1, 2)) + 1 / count)
        return gradient, steps

    def spreads(self, strengths: Any, contrasts: Any) -> Any:
        """The standard errors of contrasts (rows) at strengths (count,)."""
        import numpy as np

        _, curvature = self._shares(strengths[None])
        inverse = np.linalg.inv(_laplacian(curvature)[0] + 1 / len(strengths))
        return np.sqrt(np.maximum(np.einsum("ki,ij,kj->k", contrasts, inverse, contrasts), _SMALL))

    def _shares(self, strengths: Any) -> tuple[Any, Any]:
        """The log of the share that the first of each pair wins, and the pair's curvature."""
        import numpy as np

        log_shares = -np.logaddexp(0.0, strengths[:, None, :] - strengths[:, :, None])
        both = log_shares + np.swapaxes(log_shares, 1, 2)
        return log_shares, self._weights * np.exp(both)

    def maximum(
        self, strengths: Any, last_step: float, contrast: Any = None, values: Any = None
    ) -> Any:
        """The strengths of the greatest likelihood, from a start, until no step is longer.

        With `contrast` (K, count) and `values` (K,): among those of which the contrast has the
        value; each row of `contrast` sums to 0.
        """
        import numpy as np

        strengths = strengths.copy()
        for _ in range(_MOST_STEPS):
            gradient, steps = self.slope(strengths)
            step = np.einsum("kij,kj->ki", steps, gradient)
            if contrast is not None:
                along = np.einsum("kij,kj->ki", steps, contrast)
                missing = values - (contrast * strengths).sum(1)
                excess = (contrast * step).sum(1) - missing
                step -= (excess / (contrast * along).sum(1))[:, None] * along
            longest = np.abs(step).max(1, keepdims=True)
            strengths += step * np.minimum(1.0, _LONGEST_STEP / np.maximum(longest, _SMALL))
            strengths -= strengths.mean(1, keepdims=True)
            if longest.max() < last_step:
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
    top = model.value(best[None])[0]
    centre = contrasts @ best
    inner, inner_root = np.zeros(rows), np.zeros(rows)
    outer, outer_root = np.full(rows, np.inf), np.full(rows, np.inf)
    distance = _Z_95 * model.spreads(best, contrasts)
    strengths = np.repeat(best[None], rows, 0)
    left = np.arange(rows)
    for _ in range(_MOST_BOUND_STEPS):
        values = centre[left] + sign * distance[left]
        strengths[left] = model.maximum(strengths[left], _LAST_BOUND_STEP, contrasts[left], values)
        root = np.sqrt(np.maximum(2 * (top - model.value(strengths[left])), 0.0))
        open_yet = np.abs(root - _Z_95) > _BOUND_TOLERANCE
        left, root = left[open_yet], root[open_yet]
        if not len(left):
            break
        inside, now = root < _Z_95, distance[left]
        inner[left] = np.where(inside, now, inner[left])
        inner_root[left] = np.where(inside, root, inner_root[left])
        outer[left] = np.where(inside, outer[left], now)
        outer_root[left] = np.where(inside, outer_root[left], root)
        beyond = now * np.clip(_Z_95 / np.maximum(root, _SMALL), 1.1, 2.0)
        with np.errstate(invalid="ignore"):
            part = (_Z_95 - inner_root[left]) / (outer_root[left] - inner_root[left])
            between = inner[left] + (outer[left] - inner[left]) * part
        distance[left] = np.where(np.isfinite(outer[left]), between, beyond)
    return centre + sign * distance
