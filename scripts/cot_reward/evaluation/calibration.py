"""How far the probability of the answer can be trusted: reliability and calibration error."""

from typing import Any

import numpy as np

from cot_reward.evaluation.answers import Answers

_BINS = 10


def calibration(answers: Answers) -> dict[str, Any] | None:
    """Accuracy by the probability of candidate 1, and how well it is calibrated; None without any.

    An item's probability is the mean over its texts of each order, then over the orders, so that a
    lean to one place cancels out. `bins`: (mean confidence, accuracy, items) of ten equal parts of
    the confidences from 0.5 to 1. `error`: the expected calibration error (Guo et al. 2017), the
    mean of |confidence - accuracy| over the items of these bins. Ties do not count.
    """
    of_texts = answers.asked(answers.probability)
    known = ~np.isnan(of_texts)
    counts = known.sum(axis=2)
    # An item counts when each of its orders has a text whose probability is known.
    there = (counts > 0).all(axis=1) & ~answers.is_tie
    if not there.any():
        return None
    sums = np.where(known, of_texts, 0).sum(axis=2, dtype=np.float64)
    first = (sums[there] / counts[there]).mean(axis=1)
    confidence = np.maximum(first, 1 - first)
    right = np.where(first > 0.5, 1, 2) == answers.truth[there]
    # Neither is preferred.
    right &= first != 0.5
    place = np.minimum(((confidence - 0.5) * 2 * _BINS).astype(int), _BINS - 1)
    bins = [
        (float(confidence[place == n].mean()), float(right[place == n].mean()), int(count))
        for n, count in enumerate(np.bincount(place, minlength=_BINS).tolist())
        if count
    ]
    error = sum(abs(mean - share) * count for mean, share, count in bins) / len(right)
    return {
        "accuracy": float(right.mean()), "items": len(right), "error": float(error), "bins": bins,
    }  # fmt: skip
