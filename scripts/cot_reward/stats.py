"""Figures of judged rows: shares with intervals, and paired comparisons between models."""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
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


def tally(rows: Sequence[Mapping[str, Any]], mismatches: int = 0) -> dict[str, Any]:
    """The figures of judged rows: shares as fractions, each with its count and 95% interval."""
    judged = len(rows)
    formed = [row for row in rows if row["answer"]]
    correct = sum(row["verdict"] == "correct" for row in rows)
    by_order: dict[str, dict[str, str]] = defaultdict(dict)
    passes: dict[str, list[bool]] = defaultdict(list)
    for row in rows:
        by_order[f"{row['id']}/{row['sample']}"][row["order"]] = row["verdict"]
        passes[row["id"]].append(row["verdict"] == "correct")
    swapped = [tuple(orders.values()) for orders in by_order.values() if len(orders) == 2]
    # Right twice, or wrong twice: either way the same candidate was named in both orders.
    survives = sum(pair in (("correct",) * 2, ("incorrect",) * 2) for pair in swapped)
    right_twice = sum(pair == ("correct", "correct") for pair in swapped)
    histogram = Counter(f"{sum(p) / len(p):.2f}" for p in passes.values())

    return {
        "judged": judged,
        "verdicts": dict(Counter(row["verdict"] for row in rows)),
        "coherence": dict(Counter(row["coherence"] for row in formed)),
        "mismatch": mismatches,
        "accuracy": share(correct, judged),
        "well_formed": share(len(formed), judged),
        "coherent": share(sum(row["coherence"] == "coherent" for row in formed), judged),
        "answers_1": share(sum(row["answer"] == 1 for row in formed), len(formed)),
        "survives_swap": share(survives, len(swapped)),
        "right_in_both_orders": share(right_twice, len(swapped)),
        "pass_rate_histogram": dict(sorted(histogram.items())),
    }
