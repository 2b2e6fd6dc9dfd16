"""How the tokens of a shared row lie, as the layers of a family need to know it."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Rows [prompt | response 1 | response 2 | ...], every part padded on the right.

    `prompt_mask` is (pairs, P), `widths` are the lengths of the responses' parts.
    """

    prompt_mask: Tensor
    widths: tuple[int, ...]

    def response_mask(self) -> Tensor:
        """Which tokens a response's token sees: its prompt, and its own response up to itself.

        Booleans of (pairs, 1, sum of widths, P + sum of widths).
        """
        device = self.prompt_mask.device
        causal = torch.block_diag(
            *(
                torch.ones(width, width, device=device, dtype=torch.bool).tril()
                for width in self.widths
            )
        )
        pairs, queries = len(self.prompt_mask), len(causal)
        prompt = self.prompt_mask.bool()[:, None, None, :].expand(pairs, 1, queries, -1)
        return torch.cat((prompt, causal.expand(pairs, 1, -1, -1)), dim=-1)
