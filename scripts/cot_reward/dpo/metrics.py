"""Metrics of single pairs, averaged between two lines of the log: by answer, model and length."""

from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor

Metrics = dict[str, float]
_COLUMNS = 8


def sequence_logps(log_probs: Tensor, completion_mask: Tensor, ld_alpha: float | None) -> Tensor:
    """Log-probs of responses, (2 x pairs,), from the log-probs of their tokens.

    With `ld_alpha` (LD-DPO, arXiv 2409.06411, as TRL has it) the tokens after the shorter
    response's length are weighted by it.
    """
    if ld_alpha is None:
        return log_probs.sum(dim=1)
    chosen, rejected = completion_mask.sum(dim=1).chunk(2)
    shorter = torch.minimum(chosen, rejected).repeat(2)[:, None]
    tail = completion_mask.cumsum(dim=1) > shorter
    return (log_probs * torch.where(tail, ld_alpha, 1.0)).sum(dim=1)


class PairMetrics:
    """Collects pairs on every process; `take` averages them over all processes and resets."""

    def __init__(self) -> None:
        self._parts: list[Tensor] = []

    def add(
        self,
        beta: float,
        log_probs: Tensor,
        inputs: dict[str, Any],
        pairs: dict[str, Tensor],
        real: int,
        *,
        loss: Tensor,
        sft_weight: float,
        ld_alpha: float | None,
    ) -> None:
        """Add the first `real` pairs of a micro-batch, from the policy's per-token `log_probs`.

        `inputs["completion_mask"]` has the shape (2 x pairs, length), `log_probs` one position
        less. `loss` is `sft_weight` times the mean over the chosen tokens plus a mean over pairs.
        """
        mask = inputs["completion_mask"][:, 1:]
        log_probs = log_probs[:, -mask.shape[1] :]
        chosen, rejected = sequence_logps(log_probs, mask, ld_alpha).chunk(2)
        chosen_tokens, rejected_tokens = mask.sum(dim=1).chunk(2)
        sft_sums = sft_weight * -log_probs.chunk(2)[0].sum(dim=1)
        pair_loss = loss - sft_sums.sum() / chosen_tokens.sum()
        columns = [
            beta * (chosen - inputs["ref_chosen_logps"]),
            beta * (rejected - inputs["ref_rejected_logps"]),
            pairs["answer"],
            pairs["same_model"],
            chosen_tokens - rejected_tokens,
            pair_loss.expand(len(chosen_tokens)),
            sft_sums,
            chosen_tokens,
        ]
        self._parts.append(torch.stack([column.double() for column in columns], dim=1)[:real])

    def take(self) -> Metrics:
        """Metrics of all processes' pairs since the last call; every process must call it."""
        own = torch.cat(self._parts).cpu().numpy() if self._parts else np.empty((0, _COLUMNS))
        self._parts = []
        return average(np.concatenate(gather_object([own])))


def average(pairs: np.ndarray) -> Metrics:
    """Means over pairs, (n, 8).

    Columns: reward of the chosen and of the rejected, answer, same model, chosen tokens less
    rejected tokens, the loss without its SFT term, that term's sum over the chosen tokens, and the
    number of chosen tokens. A metric of a group is missing when no pair is in the group.
    """
    if not len(pairs):
        return {}
    chosen, rejected, answer, same_model, excess_tokens, pair_loss, sft_sums, tokens = pairs.T
    margin = chosen - rejected
    correct = margin > 0
    metrics = {
        "loss": pair_loss.mean() + sft_sums.sum() / tokens.sum(),
        "rewards/chosen": chosen.mean(),
        "rewards/rejected": rejected.mean(),
        "rewards/accuracies": correct.mean(),
        "rewards/margins": margin.mean(),
    }
    groups = {
        "answer_1": answer == 1,
        "answer_2": answer == 2,
        "same_model": same_model == 1,
        "cross_model": same_model == 0,
    }
    for name, group in groups.items():
        if group.any():
            metrics[f"rewards/accuracies_{name}"] = correct[group].mean()
    if len(pairs) > 2 and margin.std() > 0 and excess_tokens.std() > 0:
        metrics["rewards/margin_length_correlation"] = np.corrcoef(margin, excess_tokens)[0, 1]
    return {name: float(value) for name, value in metrics.items()}
