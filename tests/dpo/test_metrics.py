"""Metrics of single pairs: by groups, and per response."""

import numpy as np
import pytest
import torch
from cot_reward.dpo.metrics import average, sequence_logps


def test_metrics_of_groups_of_pairs() -> None:
    #                 chosen, rejected, answer, same model, longer by
    pairs = np.array(
        [[1.0, 0.0, 1, 1, 4], [0.0, 2.0, 1, 0, -8], [3.0, 0.0, 2, 1, 12], [0.0, 0.0, 0, -1, 0]]
    )
    # Loss of the pair, weighted sum over its chosen tokens, and their number.
    pairs = np.hstack([pairs, [[1.0, 10, 1], [2.0, 10, 4], [3.0, 20, 5], [4.0, 0, 10]]])
    metrics = average(pairs)
    assert metrics["loss"] == 2.5 + 40 / 20
    assert metrics["rewards/accuracies"] == 0.5
    assert metrics["rewards/accuracies_answer_1"] == 0.5
    assert metrics["rewards/accuracies_answer_2"] == 1.0
    assert metrics["rewards/accuracies_same_model"] == 1.0
    assert metrics["rewards/accuracies_cross_model"] == 0.0
    assert metrics["rewards/margins"] == 0.5
    assert metrics["rewards/margin_length_correlation"] == pytest.approx(1.0, abs=1e-2)
    assert average(np.empty((0, 8))) == {}
    alike = average(pairs[[2, 2, 2]])
    assert "rewards/accuracies_answer_1" not in alike
    assert "rewards/margin_length_correlation" not in alike


def test_tokens_after_the_shorter_response_count_by_ld_alpha() -> None:
    log_probs = torch.tensor([[-1.0, -1, -1, -1], [-1.0, -1, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    assert sequence_logps(log_probs, mask, None).tolist() == [-4, -2]
    assert sequence_logps(log_probs, mask, 0.25).tolist() == [-2.5, -2]
