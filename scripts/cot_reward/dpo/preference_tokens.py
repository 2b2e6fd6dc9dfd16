"""Which tokens of a pair DPO's losses compare: all, the first difference, or the uncertain ones.

A rejected text is mostly right. Where it is coherent, its answer follows from its totals, and they
from its scores: the mistake lies before. DPO over whole texts lowers the log-probs of these tokens,
too, and teaches the model to leave its own reasoning, and the form. Up to the first place in which
two texts differ their context is the same, so that this place alone can be blamed for what follows.
(Step-DPO, arXiv 2406.18629, compares the first wrong step; of a step of this form most tokens are
right, too.) Or the reference tells them apart: a token that it was sure of follows from those
before, and one that it was not sure of is a decision. (As tokens of high entropy are for
reinforcement learning in arXiv 2506.01939.) In a text that contradicts its totals, the answer alone
is wrong, with either choice.
"""

import math
from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import Any

import torch
from torch import Tensor

CHOICES = ("all", "first_difference", "uncertain")
# The reference is sure of a token that it gives a probability of at least this.
_SURE = 0.9


def first_difference_mask(
    input_ids: Tensor, completion_mask: Tensor, answer_mask: Tensor, answer_only: Any
) -> Tensor:
    """1 for the tokens of the first difference, in the shape of `completion_mask`.

    All have the shape (2 x pairs, length), chosen texts first.

    `answer_only`, (pairs,), is 1 where the rejected text's answer alone is wrong: there the answer
    blocks are compared, up to where they agree again, if both texts have one.
    """
    compared = torch.zeros_like(completion_mask)
    pairs = len(completion_mask) // 2
    for pair, of_answer in enumerate(answer_only):
        sides = [pair, pair + pairs]
        in_answers = of_answer and all(answer_mask[side].any() for side in sides)
        mask = answer_mask if in_answers else completion_mask
        places = [mask[side].nonzero()[:, 0] for side in sides]
        ids = [input_ids[side, at].tolist() for side, at in zip(sides, places, strict=True)]
        for side, at, (start, end) in zip(sides, places, _first_difference(*ids), strict=True):
            compared[side, at[start:end]] = 1
    return compared


def uncertain_mask(
    ref_logps: Tensor, completion_mask: Tensor, answer_mask: Tensor, answer_only: Tensor
) -> Tensor:
    """1 for the tokens that the reference was not sure of, in the shape of `completion_mask`.

    All but `answer_only`, as of `first_difference_mask`, have the shape (2 x pairs, length).
    """
    of_answer = answer_only.bool() & torch.stack(answer_mask.any(dim=1).chunk(2)).all(dim=0)
    allowed = torch.where(of_answer.repeat(2)[:, None], answer_mask, completion_mask)
    return allowed * (ref_logps < math.log(_SURE))


def _first_difference(
    first: Sequence[int], second: Sequence[int]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Start and end, in each text, of the tokens from the first difference to where both agree.

    Where one text has nothing there, both are taken one token further: what it has instead.
    """
    for kind, start, end, other_start, other_end in SequenceMatcher(
        a=first, b=second, autojunk=False
    ).get_opcodes():
        if kind != "equal":
            further = int(kind != "replace")
            return (start, end + further), (other_start, other_end + further)
    return (0, 0), (0, 0)
