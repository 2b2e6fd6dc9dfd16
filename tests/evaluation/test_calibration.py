"""Calibration: by hand, beside scikit-learn, and on probabilities that are right as made."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from cot_reward.evaluation.answers import Answers
from cot_reward.evaluation.calibration import calibration
from helpers.benchmarks import answers_of
from sklearn.calibration import calibration_curve


def of(probabilities: Any, better: list[int]) -> Answers:
    """Answers with these probabilities of candidate 1: (items, orders, samples)."""
    array = np.array(probabilities, dtype=np.float32)
    return replace(answers_of(np.ones(array.shape, int), better), probability=array)


def test_both_orders_count_alike_and_a_lean_cancels_out() -> None:
    nan = float("nan")
    found = calibration(of([
        [[0.9, 0.7], [0.6, nan]],  # (0.8 + 0.6) / 2 = 0.7: candidate 1, right
        [[0.9, 0.9], [0.3, 0.3]],  # 0.6: candidate 1, wrong
        [[nan, nan], [0.1, 0.1]],  # one order alone: left out
        [[0.5, 0.5], [0.5, 0.5]],  # neither: wrong
        [[0.2, 0.2], [0.2, 0.2]],  # a tie: left out
    ], [1, 2, 1, 1, 0]))  # fmt: skip
    assert found is not None
    assert (found["items"], found["accuracy"]) == (3, pytest.approx(1 / 3))
    assert [count for *_, count in found["bins"]] == [1, 1, 1]
    assert found["error"] == pytest.approx((abs(0.5 - 0) + abs(0.6 - 0) + abs(0.7 - 1)) / 3)
    assert calibration(answers_of(np.ones((2, 2, 1), int))) is None


def test_probabilities_that_are_right_are_calibrated() -> None:
    choice = np.random.default_rng(0)
    first = choice.uniform(0.02, 0.98, 4000)
    better = np.where(choice.random(4000) < first, 1, 2).tolist()
    right = calibration(of(np.repeat(first, 2).reshape(4000, 2, 1), better))
    sure = calibration(
        of(np.repeat(np.where(first > 0.5, 0.98, 0.02), 2).reshape(-1, 2, 1), better)
    )
    assert right is not None
    assert sure is not None
    assert right["error"] < 0.03
    assert sure["error"] > 0.2
    assert right["accuracy"] == sure["accuracy"]
    confidence = np.maximum(first, 1 - first)
    is_right = (first > 0.5) == (np.array(better) == 1)
    # scikit-learn's bins are equal parts of 0 to 1, of which the confidences fill the upper half.
    shares, means = calibration_curve(is_right, confidence, n_bins=20)
    assert [share for _, share, _ in right["bins"]] == pytest.approx(shares.tolist())
    assert [mean for mean, *_ in right["bins"]] == pytest.approx(means.tolist(), abs=1e-6)
