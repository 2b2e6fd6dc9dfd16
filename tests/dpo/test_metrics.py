"""Metrics of single pairs: by groups, and per response."""

import numpy as np
import pytest
import torch
from cot_reward.dpo.loss_terms import LossTerm
from cot_reward.dpo.metrics import average, sequence_logps

# Column -> its values for four pairs.
PAIRS = {
    "chosen_reward": [1.0, 0.0, 3.0, 0.0],
    "rejected_reward": [0.0, 2.0, 0.0, 0.0],
    "chosen_logp": [-10.0, -20.0, -30.0, -40.0],
    "rejected_logp": [-1.0, -2.0, -3.0, -6.0],
    "answer": [1, 1, 2, 0],
    "weight": [1.0, 1.0, 1.0, 1.0],
    "same_model": [1, 0, 1, -1],
    "chosen_tokens": [5, 4, 13, 10],
    "rejected_tokens": [1, 12, 1, 10],
    "other_loss": [0.5, 0.5, 0.5, 0.5],
    "sigmoid": [1.0, 2.0, 3.0, 4.0],
    "sft": [2.0, 4.0, 4.0, 0.4],
    "has_blocks": [1, 1, 1, 0],
    "chosen_answer_reward": [-1.0, 0.5, 2.0, 99.0],
    "rejected_answer_reward": [-2.0, 1.0, -3.0, 99.0],
    "chosen_answer_token_logp": [-0.1, -0.2, -0.6, 99.0],
    "rejected_answer_token_logp": [-1.0, -1.0, -4.0, 99.0],
    "chosen_reasoning_token_logp": [-0.5, -0.5, -2.0, 99.0],
    "rejected_reasoning_token_logp": [-1.5, -1.5, -3.0, 99.0],
}


def columns(*indices: int) -> dict[str, np.ndarray]:
    return {name: np.array(values)[list(indices)] for name, values in PAIRS.items()}


def test_metrics_of_groups_of_pairs() -> None:
    weights = {"sigmoid": 1.0, "sft": 5.0}
    metrics = average(columns(0, 1, 2, 3), weights)
    assert metrics["loss/sigmoid"] == 2.5
    assert metrics["loss/sft"] == pytest.approx((10 + 16 + 52 + 4) / 32)
    assert metrics["loss"] == pytest.approx(2.5 + 5 * 82 / 32 + 0.5)
    assert metrics["logps/chosen"] == -25
    assert metrics["logps/rejected"] == -3
    assert metrics["rewards/accuracies"] == 0.5
    assert metrics["rewards/accuracies_answer_1"] == 0.5
    assert metrics["rewards/accuracies_answer_2"] == 1.0
    assert metrics["rewards/accuracies_same_model"] == 1.0
    assert metrics["rewards/accuracies_cross_model"] == 0.0
    assert metrics["rewards/margins"] == 0.5
    assert metrics["rewards/margin_length_correlation"] == pytest.approx(1.0, abs=1e-2)
    assert average(columns(), weights) == {}
    pairs = columns(0, 1, 2, 3) | {"weight": np.array([3.0, 1.0, 0.0, 1.0])}
    metrics = average(pairs, weights)
    assert metrics["loss/sigmoid"] == pytest.approx((3 + 2 + 4) / 5)
    assert metrics["loss/sft"] == pytest.approx((30 + 16 + 4) / (15 + 4 + 10))
    assert metrics["rewards/accuracies"] == 0.5
    alike = average(columns(2, 2, 2), weights)
    assert "rewards/accuracies_answer_1" not in alike
    assert "rewards/margin_length_correlation" not in alike


def test_answer_and_reasoning_are_told_apart() -> None:
    """Means over the three pairs whose two texts have an answer block."""
    metrics = average(columns(0, 1, 2, 3), {"sigmoid": 1.0})
    assert metrics["no_answer_block"] == 0.25
    assert metrics["answer_logps/chosen"] == pytest.approx(-0.3)
    assert metrics["answer_logps/rejected"] == -2
    assert metrics["reasoning_logps/chosen"] == -1
    assert metrics["reasoning_logps/rejected"] == -2
    assert metrics["answer_rewards/chosen"] == 0.5
    assert metrics["answer_rewards/rejected"] == pytest.approx(-4 / 3)
    assert metrics["answer_rewards/margins"] == pytest.approx(5.5 / 3)
    assert metrics["reasoning_rewards/chosen"] == pytest.approx(2.5 / 3)
    assert metrics["reasoning_rewards/rejected"] == 2
    # The margins of the three pairs are 1, -2 and 3.
    assert metrics["reasoning_rewards/margins"] == pytest.approx(2 / 3 - 5.5 / 3)
    assert metrics["answer_rewards/margins_answer_1"] == 0.25
    assert metrics["answer_rewards/margins_answer_2"] == 5
    without = average(columns(3), {"sigmoid": 1.0})
    assert without["no_answer_block"] == 1
    assert not [name for name in without if name.startswith(("answer_", "reasoning_"))]
    assert "answer_rewards/margins_answer_2" not in average(columns(0, 1), {"sigmoid": 1.0})


def test_a_loss_of_one_term_has_no_parts() -> None:
    metrics = average(columns(0, 1), {"sigmoid": 2.0})
    assert metrics["loss"] == 2 * 1.5 + 0.5
    assert not [name for name in metrics if name.startswith("loss/")]


def test_a_term_keeps_the_mean_that_it_weights() -> None:
    term, mean = LossTerm("sft", 5.0), torch.tensor(2.0, requires_grad=True)
    (0.0 + mean * term).backward()
    assert term.mean.item() == 2.0
    assert not term.mean.requires_grad
    assert mean.grad == 5.0


def test_tokens_after_the_shorter_response_count_by_ld_alpha() -> None:
    log_probs = torch.tensor([[-1.0, -1, -1, -1], [-1.0, -1, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    assert sequence_logps(log_probs, mask, None).tolist() == [-4, -2]
    assert sequence_logps(log_probs, mask, 0.25).tolist() == [-2.5, -2]
