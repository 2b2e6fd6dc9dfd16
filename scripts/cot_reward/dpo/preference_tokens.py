"""Which tokens of a pair DPO's losses compare: of the whole texts, or of the part that is wrong.

A rejected text is mostly right. Where it is coherent, its answer follows from its totals, and they
from its scores: the mistake lies before. DPO over whole texts lowers the log-probs of these tokens,
too, and teaches the model to leave its own reasoning. Up to the first step in which two texts
differ, their context is the same, so that this step alone can be blamed for what follows (Step-DPO,
arXiv 2406.18629). In a text that contradicts its totals the answer alone is wrong.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

CHOICES = ("all", "reasoning", "wrong_part", "first_step", "first_token", "wrong_step", "wrong_token")


def compared_mask(
    choice: str,
    texts: Sequence[str],
    completion_mask: Tensor,
    answer_mask: Tensor,
    answer_only: Sequence[int],
    tokenizer: Any,
) -> Tensor:
    """1 for the compared tokens, in the shape of `completion_mask`, (2 x pairs, length).

    `texts` are the responses as the chat template writes them, chosen first. `answer_only`,
    (pairs,), is 1 where the rejected text's answer alone is wrong.
    """
    if choice == "all":
        return completion_mask
    if choice in ("reasoning", "wrong_part"):
        compared = completion_mask - answer_mask
    else:
        compared = _first_steps(texts, completion_mask, tokenizer, choice.endswith("token"))
    if choice.startswith("wrong"):
        has_blocks = answer_mask.any(dim=1).view(2, -1).all(dim=0)
        by_answer = has_blocks & torch.tensor(answer_only, dtype=torch.bool)
        compared = torch.where(by_answer.repeat(2)[:, None], answer_mask, compared)
    return compared


def _first_steps(texts: Sequence[str], completion_mask: Tensor, tokenizer: Any, one: bool) -> Tensor:
    """1 for the tokens from the first one that differs within a pair to the end of its line."""
    encoded = tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    mask, pairs = torch.zeros_like(completion_mask), len(texts) // 2
    for row, text in enumerate(texts):
        own, other = ids[row], ids[(row + pairs) % (2 * pairs)]
        start = next(
            (place for place, (a, b) in enumerate(zip(own, other, strict=False)) if a != b),
            min(len(own), len(other)),
        )
        places = completion_mask[row].nonzero()[:, 0]
        assert len(places) == len(own)
        if start == len(own):
            continue
        end = text.find("\n", offsets[row][start][1])
        end = len(text) if end < 0 else end
        within = [start <= place and first < end for place, (first, _) in enumerate(offsets[row])]
        if one:
            within = [place == start for place in range(len(own))]
        mask[row, places] = torch.tensor(within, dtype=mask.dtype)
    return mask
