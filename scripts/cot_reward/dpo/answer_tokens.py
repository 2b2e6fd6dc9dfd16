"""Which tokens of a response are its answer block; all other ones are called its reasoning.

DPO may raise the margin by the few tokens of the answer alone. The model then no longer answers as
its own reasoning says, and no figure of whole texts shows it.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cot_reward.judge import answer_block


def answer_mask(
    contents: Sequence[str], texts: Sequence[str], completion_mask: Tensor, tokenizer: Any
) -> Tensor:
    """1 for the tokens of each response's answer block, in the shape of `completion_mask`.

    `contents` are the responses as their rows have them, `texts` the same ones as the chat template
    writes them, in the order of the mask's rows. A row is 0 throughout where its response has no
    answer block, and where the tokenizer does not tell which characters a token stands for.
    """
    mask = torch.zeros_like(completion_mask)
    if not tokenizer.is_fast:
        return mask
    encoded = tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True)
    for row, (content, text) in enumerate(zip(contents, texts, strict=True)):
        tokens = _in_block(content, text, encoded["offset_mapping"][row])
        places = completion_mask[row].nonzero()[:, 0]
        # A processor may tokenize in its own way; its tokens are then not those of the offsets.
        if len(tokens) == len(places):
            mask[row, places] = torch.tensor(tokens, dtype=mask.dtype)
    return mask


def _in_block(content: str, text: str, offsets: Sequence[tuple[int, int]]) -> list[bool]:
    """Whether each token, with its characters' (start, end) in `text`, has a part of the block."""
    block = answer_block(content)
    # A template may write something before or after the response, or change it.
    start = text.rfind(block) if block else -1
    if block is None or start < 0:
        return [False] * len(offsets)
    end = start + len(block)
    return [first < end and last > start for first, last in offsets]
