"""The bootstrap of means over items that are not independent: clusters are drawn, not items."""

from collections.abc import Sequence

import numpy as np

RESAMPLES = 5_000
# Intervals of fewer clusters are too narrow (Cameron, Gelbach and Miller 2008).
FEW_CLUSTERS = 20
_CELLS_AT_ONCE = 20_000_000


class Clusters:
    """Draws of the clusters of some items, the same ones for every column, model and group.

    With the same draws a difference of two models is paired. Where every item is a cluster of its
    own this is the ordinary bootstrap. Field and Welsh 2007, the cluster bootstrap.
    """

    def __init__(self, clusters: Sequence[str], resamples: int = RESAMPLES, seed: int = 0) -> None:
        names, self._cluster_of = np.unique(np.asarray(clusters, dtype=object), return_inverse=True)
        self.count = len(names)
        self._resamples, self._seed = resamples, seed

    def means(self, values: np.ndarray) -> np.ndarray:
        """The mean of each column in every draw: (resamples, columns).

        `values`: (items, columns); NaN where an item does not count in a column. A draw without any
        item of a column has NaN there.
        """
        counts = np.zeros((self.count, values.shape[1]))
        sums = np.zeros_like(counts)
        np.add.at(counts, self._cluster_of, ~np.isnan(values))
        np.add.at(sums, self._cluster_of, np.nan_to_num(values))
        both = np.hstack([sums, counts])
        found = np.empty((self._resamples, both.shape[1]))
        random = np.random.default_rng(self._seed)
        even = np.full(self.count, 1 / self.count)
        batch = max(1, _CELLS_AT_ONCE // self.count)
        for start in range(0, self._resamples, batch):
            stop = min(start + batch, self._resamples)
            # How often each cluster is drawn.
            drawn = random.multinomial(self.count, even, size=stop - start)
            found[start:stop] = drawn @ both
        sums, counts = np.split(found, 2, axis=1)
        with np.errstate(invalid="ignore"):
            means: np.ndarray = sums / counts
        return means


def interval(draws: np.ndarray) -> tuple[float, float]:
    """The 95% percentile interval of the draws of one mean; NaN without any."""
    there = draws[~np.isnan(draws)]
    if not len(there):
        return float("nan"), float("nan")
    low, high = np.quantile(there, (0.025, 0.975))
    return float(low), float(high)


def mean(values: np.ndarray) -> float:
    """The mean of the values that are no NaN; NaN without any."""
    there = values[~np.isnan(values)]
    return float(there.mean()) if len(there) else float("nan")
