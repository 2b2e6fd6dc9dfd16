"""Metrics of single pairs, averaged between two lines of the log: by answer, model and length."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor

Metrics = dict[str, float]


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
    """Collects pairs on every process; `take` averages them over all processes and resets."""

    def __init__(self) -> None:
        # Column -> its values (pairs,), of each micro-batch.
        self._parts: list[dict[str, Tensor]] = []

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
        other = loss.double() - sum(term.weight * term.mean.double() for term in terms)
        columns = {
            "chosen_reward": beta * (chosen - inputs["ref_chosen_logps"]),
            "rejected_reward": beta * (rejected - inputs["ref_rejected_logps"]),
            "chosen_logp": chosen,
            "rejected_logp": rejected,
            "answer": pairs["answer"],
            "same_model": pairs["same_model"],
            "chosen_tokens": chosen_tokens,
            "rejected_tokens": rejected_tokens,
            "other_loss": other.expand(len(chosen)),
            **{term.kind: term.mean.expand(len(chosen)) for term in terms},
        }
        self._parts.append({name: column.double()[:real] for name, column in columns.items()})

    def take(self, loss_types: Sequence[str], loss_weights: Sequence[float]) -> Metrics:
        """Metrics of all processes' pairs since the last call; every process must call it.

        `loss_types` and `loss_weights` are TRL's: the terms of the loss and their weights.
        """
        own = {
            name: torch.cat([part[name] for part in self._parts]).cpu().numpy()
            for name in (self._parts[0] if self._parts else ())
        }
        self._parts = []
        filled = [columns for columns in gather_object([own]) if columns]
        if not filled:
            return {}
        weights: dict[str, float] = defaultdict(float)
        for kind, weight in zip(loss_types, loss_weights, strict=True):
            weights[kind] += weight
        pairs = {name: np.concatenate([columns[name] for columns in filled]) for name in filled[0]}
        return average(pairs, weights)


def average(pairs: Mapping[str, np.ndarray], loss_weights: Mapping[str, float]) -> Metrics:
    """Means over pairs, from the columns (n,) of `PairMetrics.add`.

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
