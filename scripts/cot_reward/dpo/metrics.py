"""Metrics of single pairs, averaged between two lines of the log.

They are by answer, by model, by length, and for the answer blocks apart from the reasoning.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor

from cot_reward.dpo.loss_terms import LossTerm

Metrics = dict[str, float]


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


def _answer_columns(
    beta: float,
    log_probs: Tensor,
    reference: Tensor,
    masks: Mapping[str, Tensor],
    ld_alpha: float | None,
) -> dict[str, Tensor]:
    """Columns (pairs,) for answer block and reasoning, from the log-probs of the tokens.

    `has_blocks` tells whether both texts of a pair have an answer block; the other columns are
    meant for these pairs. Log-probs are means per token, and rewards are sums.
    """
    mask, answer = masks["mask"], masks["answer"]
    token_logps = {}
    for part, of_part in (("answer", answer), ("reasoning", mask - answer)):
        token_logps[part] = (log_probs * of_part).sum(dim=1) / of_part.sum(dim=1).clamp(min=1)
    change = sequence_logps((log_probs - reference) * answer, mask, ld_alpha)
    blocks = answer.any(dim=1).chunk(2)
    columns = {"has_blocks": blocks[0] & blocks[1]}
    for place, side in enumerate(("chosen", "rejected")):
        columns[f"{side}_answer_reward"] = beta * change.chunk(2)[place]
        for part, means in token_logps.items():
            columns[f"{side}_{part}_token_logp"] = means.chunk(2)[place]
    return columns


class PairMetrics:
    """Collects pairs on every process; `take` averages them over all processes and resets."""

    def __init__(self) -> None:
        # Column -> its values (pairs,), of each micro-batch.
        self._parts: list[dict[str, Tensor]] = []

    def add(
        self,
        beta: float,
        log_probs: Tensor,
        reference: Tensor,
        masks: Mapping[str, Tensor],
        pairs: Mapping[str, Tensor],
        *,
        loss: Tensor,
        terms: Sequence[LossTerm],
        ld_alpha: float | None,
    ) -> None:
        """Add the pairs of a micro-batch, from the policy's and the reference's token log-probs.

        `masks` has `mask`, of the texts, and `answer`, of their answer blocks; all have the shape
        (2 x pairs, length). `pairs` has `answer`,
        `same_model` and `weight`, (pairs,). `loss` is the micro-batch's: its `terms`, and TRL's
        router loss where there is one.
        """
        mask = masks["mask"]
        logps = sequence_logps(log_probs, mask, ld_alpha).chunk(2)
        rewards = (beta * sequence_logps(log_probs - reference, mask, ld_alpha)).chunk(2)
        chosen_tokens, rejected_tokens = mask.sum(dim=1).chunk(2)
        other = loss.double() - sum(term.weight * term.mean.double() for term in terms)
        columns = {
            "chosen_reward": rewards[0],
            "rejected_reward": rewards[1],
            "chosen_logp": logps[0],
            "rejected_logp": logps[1],
            **{name: pairs[name] for name in ("answer", "same_model", "weight")},
            "chosen_tokens": chosen_tokens,
            "rejected_tokens": rejected_tokens,
            "other_loss": other.expand(len(chosen_tokens)),
            **{term.kind: term.mean.expand(len(chosen_tokens)) for term in terms},
            **_answer_columns(beta, log_probs, reference, masks, ld_alpha),
        }
        self._parts.append({name: column.double() for name, column in columns.items()})

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
    tokens, every other one a mean over pairs, both by the pairs' weights; all other metrics are
    plain means. `loss` is the weighted sum of the terms; a loss of several terms has each, without
    its weight, as `loss/TYPE`. A metric of a group is missing when no pair is in the group.
    """
    if not len(pairs["answer"]):
        return {}
    tokens, weight = pairs["chosen_tokens"], pairs["weight"]
    terms = {
        kind: np.average(pairs[kind], weights=weight * tokens if kind == "sft" else weight)
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
    metrics |= _of_answer_and_reasoning(pairs)
    return {name: float(value) for name, value in metrics.items()}


def _of_answer_and_reasoning(pairs: Mapping[str, np.ndarray]) -> Metrics:
    """Log-probs per token, rewards and margins of the answer blocks and of the reasoning.

    They are means over the pairs whose two texts have an answer block; `no_answer_block` is the
    share of the other pairs. The two parts of a reward, and of a margin, add up to the whole one.
    """
    has_blocks = pairs["has_blocks"] == 1
    metrics = {"no_answer_block": 1 - has_blocks.mean()}
    if not has_blocks.any():
        return metrics
    kept = {name: column[has_blocks] for name, column in pairs.items()}
    rewards = {side: kept[f"{side}_reward"] for side in ("chosen", "rejected")}
    answer_rewards = {side: kept[f"{side}_answer_reward"] for side in rewards}
    parts = {
        "answer": answer_rewards,
        "reasoning": {side: rewards[side] - answer_rewards[side] for side in rewards},
    }
    for part, of_side in parts.items():
        for side, values in of_side.items():
            metrics[f"{part}_logps/{side}"] = kept[f"{side}_{part}_token_logp"].mean()
            metrics[f"{part}_rewards/{side}"] = values.mean()
        metrics[f"{part}_rewards/margins"] = (of_side["chosen"] - of_side["rejected"]).mean()
    margin = answer_rewards["chosen"] - answer_rewards["rejected"]
    for answer in (1, 2):
        group = kept["answer"] == answer
        if group.any():
            metrics[f"answer_rewards/margins_answer_{answer}"] = margin[group].mean()
    return metrics
