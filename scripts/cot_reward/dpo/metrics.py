"""Metrics of single pairs, averaged between two lines of the log: by answer, model and length."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor

Metrics = dict[str, float]
# Of a pair, besides the means of the loss's terms.
COLUMNS = (
    "chosen_reward", "rejected_reward", "chosen_logp", "rejected_logp", "answer", "same_model",
    "chosen_tokens", "rejected_tokens", "other_loss",
)  # fmt: skip


class LossTerm:
    """A term of TRL's loss: its kind, its weight and, once TRL has used it, its mean.

    TRL adds `mean * weight` for each loss type. A LossTerm takes the weight's place and keeps the
    mean, so that a term is TRL's own number and needs no second forward.
    """

    def __init__(self, kind: str, weight: float) -> None:
        self.kind, self.weight = kind, weight
        self.mean = torch.zeros(())

    def __rmul__(self, mean: Tensor) -> Tensor:
        self.mean = mean.detach()
        return mean * self.weight


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
    """Collects pairs on every process; `take` averages them over all processes and resets.

    `loss_weights` holds the weight of each of TRL's loss types.
    """

    def __init__(self, loss_weights: Mapping[str, float]) -> None:
        self._loss_weights = dict(loss_weights)
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
        terms: Sequence[LossTerm],
        ld_alpha: float | None,
    ) -> None:
        """Add the first `real` pairs of a micro-batch, from the policy's per-token `log_probs`.

        `inputs["completion_mask"]` has the shape (2 x pairs, length), `log_probs` one position
        less. `loss` is the micro-batch's: its `terms`, and TRL's router loss where there is one.
        """
        mask = inputs["completion_mask"][:, 1:]
        log_probs = log_probs[:, -mask.shape[1] :]
        chosen, rejected = sequence_logps(log_probs, mask, ld_alpha).chunk(2)
        chosen_tokens, rejected_tokens = mask.sum(dim=1).chunk(2)
        means = {term.kind: term.mean.double() for term in terms}
        other = loss.double() - sum(term.weight * means[term.kind] for term in terms)
        columns = [
            beta * (chosen - inputs["ref_chosen_logps"]),
            beta * (rejected - inputs["ref_rejected_logps"]),
            chosen,
            rejected,
            pairs["answer"],
            pairs["same_model"],
            chosen_tokens,
            rejected_tokens,
            other.expand(len(chosen)),
            *(means[kind].expand(len(chosen)) for kind in self._loss_weights),
        ]
        self._parts.append(torch.stack([column.double() for column in columns], dim=1)[:real])

    def take(self) -> Metrics:
        """Metrics of all processes' pairs since the last call; every process must call it."""
        names = [*COLUMNS, *self._loss_weights]
        own = torch.cat(self._parts).cpu().numpy() if self._parts else np.empty((0, len(names)))
        self._parts = []
        pairs = np.concatenate(gather_object([own]))
        return average(dict(zip(names, pairs.T, strict=True)), self._loss_weights)


def average(pairs: Mapping[str, np.ndarray], loss_weights: Mapping[str, float]) -> Metrics:
    """Means over pairs, from the columns (n,) named in COLUMNS and by loss type.

    A loss type's column has the mean of the pair's micro-batch. The SFT term is a mean over chosen
    tokens, every other one a mean over pairs. `loss` is the weighted sum of the terms; a loss of
    several terms has each, without its weight, as `loss/TYPE`. A metric of a group is missing when
    no pair is in the group.
    """
    if not len(pairs["answer"]):
        return {}
    tokens = pairs["chosen_tokens"]
    terms = {
        kind: np.average(pairs[kind], weights=tokens if kind == "sft" else None)
        for kind in loss_weights
    }
    margin = pairs["chosen_reward"] - pairs["rejected_reward"]
    correct = margin > 0
    metrics = {
        "loss": pairs["other_loss"].mean()
        + sum(weight * terms[kind] for kind, weight in loss_weights.items()),
        "rewards/chosen": pairs["chosen_reward"].mean(),
        "rewards/rejected": pairs["rejected_reward"].mean(),
        "rewards/accuracies": correct.mean(),
        "rewards/margins": margin.mean(),
        "logps/chosen": pairs["chosen_logp"].mean(),
        "logps/rejected": pairs["rejected_logp"].mean(),
    }
    if len(terms) > 1:
        metrics |= {f"loss/{kind}": mean for kind, mean in terms.items()}
    groups = {
        "answer_1": pairs["answer"] == 1,
        "answer_2": pairs["answer"] == 2,
        "same_model": pairs["same_model"] == 1,
        "cross_model": pairs["same_model"] == 0,
    }
    for name, group in groups.items():
        if group.any():
            metrics[f"rewards/accuracies_{name}"] = correct[group].mean()
    excess_tokens = tokens - pairs["rejected_tokens"]
    if len(margin) > 2 and margin.std() > 0 and excess_tokens.std() > 0:
        metrics["rewards/margin_length_correlation"] = np.corrcoef(margin, excess_tokens)[0, 1]
    return {name: float(value) for name, value in metrics.items()}
