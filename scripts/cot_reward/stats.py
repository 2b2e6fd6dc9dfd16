"""Metrics of judged rows: accuracy, well-formed texts, position bias, pass rates, with intervals.

Also: the Wilson interval, the bootstrap of a mean, and the paired difference of two models.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# The 97.5% quantile of the normal distribution, for two-sided 95% intervals.
_Z_95 = 1.959963984540054
_INDICES_PER_BATCH = 4_000_000


def wilson(successes: float, n: int) -> tuple[float, float]:
    """The 95% Wilson score interval of a proportion; (0, 1) when `n` is 0."""
    if n == 0:
        return 0.0, 1.0
    p = successes / n
    scale = 1 + _Z_95**2 / n
    centre = (p + _Z_95**2 / (2 * n)) / scale
    half = _Z_95 * math.sqrt(p * (1 - p) / n + _Z_95**2 / (4 * n**2)) / scale
    return max(0.0, centre - half), min(1.0, centre + half)


def bootstrap_mean(
    values: Sequence[float], resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """The 95% percentile bootstrap interval of a mean over independent units."""
    import numpy as np

    data = np.asarray(values, dtype=float)
    random = np.random.default_rng(seed)
    means = np.empty(resamples)
    # In batches: all indices at once would take resamples x units x 8 bytes.
    batch = max(1, _INDICES_PER_BATCH // max(1, len(data)))
    for start in range(0, resamples, batch):
        stop = min(start + batch, resamples)
        means[start:stop] = data[random.integers(0, len(data), (stop - start, len(data)))].mean(1)
    return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


def paired_difference(
    after: Sequence[float], before: Sequence[float], resamples: int = 10_000, seed: int = 0
) -> dict[str, float]:
    """The mean of after - before over paired units, with its 95% bootstrap interval.

    Raises ValueError for no units, or for two sequences of different lengths.
    """
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
    """Counts judged rows, comparison by comparison; memory does not grow with the rows."""

    def __init__(self) -> None:
        self._verdicts: Counter[str] = Counter()
        self._coherence: Counter[str] = Counter()
        self._pass_rates: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()

    def add(self, rows: Iterable[Mapping[str, Any]], mismatches: int = 0) -> None:
        """Add all rows of one comparison; `mismatches` of them have a mismatch (see `Verdict`)."""
        rows = list(rows)
        if not rows:
            return
        # sample -> order -> verdict
        verdicts_by_order = defaultdict[int, dict[str, str]](dict)
        for row in rows:
            self._verdicts[row["verdict"]] += 1
            verdicts_by_order[row["sample"]][row["order"]] = row["verdict"]
            if row["answer"]:
                self._coherence[row["coherence"]] += 1
                self._counts["answers_1"] += row["answer"] == 1
        correct = sum(row["verdict"] == "correct" for row in rows)
        self._pass_rates[f"{correct / len(rows):.2f}"] += 1
        for verdicts in verdicts_by_order.values():
            if len(verdicts) == 2:
                self._counts["swapped"] += 1
                # Right twice or wrong twice: both orders named the same candidate.
                self._counts["survives"] += set(verdicts.values()) in ({"correct"}, {"incorrect"})
                self._counts["right_twice"] += set(verdicts.values()) == {"correct"}
        self._counts["mismatch"] += mismatches

    def metrics(self) -> dict[str, Any]:
        """Shares as fractions, each with its count and 95% interval."""
        judged, well_formed = self._verdicts.total(), self._coherence.total()
        counts = self._counts
        return {
            "judged": judged,
            "verdicts": dict(self._verdicts),
            "coherence": dict(self._coherence),
            "mismatch": counts["mismatch"],
            "accuracy": share(self._verdicts["correct"], judged),
            "well_formed": share(well_formed, judged),
            "coherent": share(self._coherence["coherent"], judged),
            "answers_1": share(counts["answers_1"], well_formed),
            "survives_swap": share(counts["survives"], counts["swapped"]),
            "right_in_both_orders": share(counts["right_twice"], counts["swapped"]),
            "pass_rate_histogram": dict(sorted(self._pass_rates.items())),
        }


def tally(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The metrics of judged rows in any order (see `Tally.metrics`)."""
    by_comparison: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        by_comparison[row["id"]].append(row)
    counts = Tally()
    for group in by_comparison.values():
        counts.add(group)
    return counts.metrics()
