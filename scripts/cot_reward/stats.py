"""Figures of judged rows: shares with intervals, and paired comparisons between models."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# 97.5% quantile of the normal distribution: two-sided 95% intervals.
_Z = 1.959963984540054


def wilson(successes: float, n: int) -> tuple[float, float]:
    """The 95% Wilson score interval of a proportion; (0, 1) when nothing was seen."""
    if n == 0:
        return 0.0, 1.0
    p = successes / n
    scale = 1 + _Z**2 / n
    centre = (p + _Z**2 / (2 * n)) / scale
    half = _Z * math.sqrt(p * (1 - p) / n + _Z**2 / (4 * n**2)) / scale
    return max(0.0, centre - half), min(1.0, centre + half)


def bootstrap_mean(
    values: Sequence[float], resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """The 95% percentile interval of a mean over independent units, by resampling the units."""
    import numpy as np

    data = np.asarray(values, dtype=float)
    random = np.random.default_rng(seed)
    means = np.empty(resamples)
    # In slices: all indices at once would take resamples x units x 8 bytes.
    step = max(1, 4_000_000 // max(1, len(data)))
    for start in range(0, resamples, step):
        stop = min(start + step, resamples)
        means[start:stop] = data[random.integers(0, len(data), (stop - start, len(data)))].mean(1)
    return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


def paired_difference(
    after: Sequence[float], before: Sequence[float], resamples: int = 10_000, seed: int = 0
) -> dict[str, float]:
    """Mean of after - before over paired units, with its 95% bootstrap interval."""
    if len(after) != len(before) or not after:
        raise ValueError(f"{len(after)} and {len(before)} units cannot be paired")
    deltas = [a - b for a, b in zip(after, before, strict=True)]
    low, high = bootstrap_mean(deltas, resamples, seed)
    return {"difference": sum(deltas) / len(deltas), "low": low, "high": high, "units": len(deltas)}


def share(count: int, of: int) -> dict[str, Any]:
    """A proportion as every summary writes it, with its 95% Wilson interval."""
    low, high = wilson(count, of)
    return {"share": count / of if of else 0.0, "count": count, "of": of, "low": low, "high": high}


class Tally:
    """The figures of judged rows, taken in by comparison; memory does not grow with them."""

    def __init__(self) -> None:
        self._verdicts: Counter[str] = Counter()
        self._coherence: Counter[str] = Counter()
        self._histogram: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()

    def add(self, rows: Iterable[Mapping[str, Any]], mismatches: int = 0) -> None:
        """Take in all rows of one comparison, of which so many have a mismatch."""
        rows, orders = list(rows), defaultdict[int, dict[str, str]](dict)
        if not rows:
            return
        for row in rows:
            self._verdicts[row["verdict"]] += 1
            orders[row["sample"]][row["order"]] = row["verdict"]
            if row["answer"]:
                self._coherence[row["coherence"]] += 1
                self._counts["answers_1"] += row["answer"] == 1
        correct = sum(row["verdict"] == "correct" for row in rows)
        self._histogram[f"{correct / len(rows):.2f}"] += 1
        for verdicts in orders.values():
            if len(verdicts) == 2:
                self._counts["swapped"] += 1
                # Right twice, or wrong twice: either way the same candidate was named in both.
                self._counts["survives"] += set(verdicts.values()) in ({"correct"}, {"incorrect"})
                self._counts["right_twice"] += set(verdicts.values()) == {"correct"}
        self._counts["mismatch"] += mismatches

    def figures(self) -> dict[str, Any]:
        """Shares as fractions, each with its count and 95% interval."""
        judged, formed = self._verdicts.total(), self._coherence.total()
        counts = self._counts
        return {
            "judged": judged,
            "verdicts": dict(self._verdicts),
            "coherence": dict(self._coherence),
            "mismatch": counts["mismatch"],
            "accuracy": share(self._verdicts["correct"], judged),
            "well_formed": share(formed, judged),
            "coherent": share(self._coherence["coherent"], judged),
            "answers_1": share(counts["answers_1"], formed),
            "survives_swap": share(counts["survives"], counts["swapped"]),
            "right_in_both_orders": share(counts["right_twice"], counts["swapped"]),
            "pass_rate_histogram": dict(sorted(self._histogram.items())),
        }


def tally(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The figures of judged rows in any order."""
    by_comparison: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        by_comparison[row["id"]].append(row)
    figures = Tally()
    for group in by_comparison.values():
        figures.add(group)
    return figures.figures()
