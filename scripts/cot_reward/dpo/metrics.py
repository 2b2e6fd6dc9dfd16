"""Figures about single pairs between two lines of the log: by answer, by source, by length."""

from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor

Figures = dict[str, float]


def sequence_logps(log_probs: Tensor, completion_mask: Tensor, ld_alpha: float | None) -> Tensor:
    """Log-probs of whole responses, (2 x pairs,), from those of their tokens.

    With `ld_alpha` (LD-DPO, arXiv 2409.06411, as TRL has it) tokens behind the shorter response's
    length count that much.
    """
    if ld_alpha is None:
        return log_probs.sum(dim=1)
    chosen, rejected = completion_mask.sum(dim=1).chunk(2)
    shorter = torch.minimum(chosen, rejected).repeat(2)[:, None]
    tail = completion_mask.cumsum(dim=1) > shorter
    return (log_probs * torch.where(tail, ld_alpha, 1.0)).sum(dim=1)


class PairFigures:
    """Collects pairs on every process; `take` sums them all up, and starts anew."""

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
        """The first `real` pairs of a micro-batch, from the policy's per-token `log_probs`.

        `log_probs` and `inputs["completion_mask"]` have the shape (2 x pairs, length), less one
        position, and (2 x pairs, length). In `loss` the mean over the chosen tokens has
        `sft_weight`; the rest of it is a mean over pairs.
        """
        mask = inputs["completion_mask"][:, 1:]
        log_probs = log_probs[:, -mask.shape[1] :]
        chosen, rejected = sequence_logps(log_probs, mask, ld_alpha).chunk(2)
        longer, shorter = mask.sum(dim=1).chunk(2)
        said = sft_weight * -log_probs.chunk(2)[0].sum(dim=1)
        of_pairs = loss - said.sum() / longer.sum()
        columns = [
            beta * (chosen - inputs["ref_chosen_logps"]),
            beta * (rejected - inputs["ref_rejected_logps"]),
            pairs["answer"],
            pairs["same_model"],
            longer - shorter,
            of_pairs.expand(len(longer)),
            said,
            longer,
        ]
        self._parts.append(torch.stack([column.double() for column in columns], dim=1)[:real])

    def take(self) -> Figures:
        """Figures of all pairs of all processes since the last call; every process must call it."""
        own = torch.cat(self._parts).cpu().numpy() if self._parts else np.empty((0, 8))
        self._parts = []
        return figures(np.concatenate(gather_object([own])))


def figures(pairs: np.ndarray) -> Figures:
    """Means over pairs, (n, 8).

    Columns: two rewards, answer, same model, difference in tokens, the loss but for its SFT part,
    that part's sum over the chosen tokens, and their number. A figure about a group is there when
    the group is.
    """
    if not len(pairs):
        return {}
    chosen, rejected, answer, same_model, longer, of_pairs, said, tokens = pairs.T
    margin = chosen - rejected
    right = margin > 0
    found = {
        "loss": of_pairs.mean() + said.sum() / tokens.sum(),
        "rewards/chosen": chosen.mean(),
        "rewards/rejected": rejected.mean(),
        "rewards/accuracies": right.mean(),
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
            found[f"rewards/accuracies_{name}"] = right[group].mean()
    if len(pairs) > 2 and margin.std() > 0 and longer.std() > 0:
        found["rewards/margin_length_correlation"] = np.corrcoef(margin, longer)[0, 1]
    return {name: float(value) for name, value in found.items()}
