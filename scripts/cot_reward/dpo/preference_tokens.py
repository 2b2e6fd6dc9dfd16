"""Which tokens of a pair DPO's losses compare: those of the whole texts, or of the part that is wrong.

A rejected text is mostly right. In one that is coherent, the answer follows from the totals: the
mistake lies before. DPO over whole texts lowers the log-probs of that answer, too, and teaches the
model not to answer as its totals say. In one that contradicts its totals the reasoning leads to the
right answer, and the answer alone is wrong. Step-DPO (arXiv 2406.18629) compares the first wrong step
for this reason; here the judge's finding tells which of two parts is wrong.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

CHOICES = ("all", "reasoning", "wrong_part")


def compared_tokens(
    choice: str, inputs: Mapping[str, Any], answer_only: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """The mask of the compared tokens, and the reference log-probs of the same tokens.

    `inputs` are a batch of `collator`, with its reference log-probs. `answer_only`, (pairs,), is 1
    where only the rejected text's answer is wrong. The mask is of shape (2 x pairs, length - 1),
    chosen first; the reference log-probs are under TRL's names, each of shape (pairs,). A text
    without an answer block has its whole length compared.
    """
    mask, answer = (inputs[name][:, 1:] for name in ("completion_mask", "answer_mask"))
    by_answer = torch.zeros_like(answer_only, dtype=torch.bool, device=answer.device)
    if choice == "wrong_part":
        has_blocks = answer.any(dim=1).view(2, -1).all(dim=0)
        by_answer = has_blocks & (answer_only.to(answer.device) == 1)
    references = {}
    for side in ("chosen", "rejected"):
        of_text, of_answer = (inputs[f"ref_{side}{part}_logps"] for part in ("", "_answer"))
        references[f"ref_{side}_logps"] = torch.where(by_answer, of_answer, of_text - of_answer)
    return torch.where(by_answer.repeat(2)[:, None], answer, mask - answer), references
