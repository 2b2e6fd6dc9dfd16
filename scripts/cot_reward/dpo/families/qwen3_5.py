"""Qwen3.5: three of four layers are gated delta nets, whose state after the prompt is forked.

A gated delta net (arXiv 2412.06464) reads its tokens in their order and keeps a recurrent state; a
short convolution before it sees the last few tokens. A response must start from the state behind
its own prompt, and not behind the response that precedes it in the row. So each of these layers
runs the prompts first, keeps both states, and then runs all responses as a batch from them. All of
it is the layer's own forward, with a cache that keeps the graph (the one of transformers copies in
place and cuts it).

Padding behind a prompt would decay the state. Inside these layers prompts are therefore aligned to
the right: zeros before a prompt leave a state of zeros as it is.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from cot_reward.dpo.families.layout import Layout

MODEL_TYPES = ("qwen3_5",)
TEXT_CONFIG: dict[str, Any] = {
    "head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 1,
    "linear_num_value_heads": 2,
}
VISION_CONFIG: dict[str, Any] = {"num_position_embeddings": 16}


def attention_masks(layout: Layout) -> dict[str, Any]:
    """By the kind of layer; a gated delta net gets the layout, from which it takes its parts."""
    return {"full_attention": layout.response_mask(), "linear_attention": layout}


def attach(backbone: Any) -> None:
    """Have every gated delta net fork its state where it is given a layout."""
    for layer in backbone.language_model.layers:
        if net := getattr(layer, "linear_attn", None):
            net.forward = _forking(net.forward)


def _forking(stock_forward: Any) -> Any:
    def forward(
        hidden_states: Tensor,
        cache_params: Any = None,
        attention_mask: Any = None,
        **arguments: Any,
    ) -> Tensor:
        if not isinstance(attention_mask, Layout):
            return stock_forward(hidden_states, cache_params, attention_mask, **arguments)
        layout, states = attention_mask, _ForkedStates()
        length = layout.prompt_mask.shape[1]
        prompt, *responses = hidden_states.split([length, *layout.widths], dim=1)
        to_right, back = _rotations(layout.prompt_mask)
        real = layout.prompt_mask.gather(1, to_right)
        of_prompt = stock_forward(
            _take(prompt, to_right), cache_params=states, attention_mask=real, **arguments
        )
        states.repeat(len(responses))
        longest = max(layout.widths)
        stacked = torch.cat([F.pad(one, (0, 0, 0, longest - one.shape[1])) for one in responses])
        of_responses = stock_forward(stacked, cache_params=states, **arguments)
        parts = of_responses.chunk(len(responses))
        kept = [part[:, :width] for part, width in zip(parts, layout.widths, strict=True)]
        return torch.cat([_take(of_prompt, back), *kept], dim=1)

    return forward


def _rotations(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Places (pairs, P) that align right-padded prompts to the right, and that undo it."""
    length = mask.shape[1]
    padding = length - mask.sum(dim=1, keepdim=True)
    places = torch.arange(length, device=mask.device)
    return (places - padding) % length, (places + padding) % length


def _take(states: Tensor, places: Tensor) -> Tensor:
    """The states (pairs, length, hidden) at these places (pairs, length)."""
    return states.gather(1, places[:, :, None].expand_as(states))


class _ForkedStates:
    """A layer's states behind the prompts, as its forward asks a cache for them.

    Nothing is written in place, so that gradients flow from the responses to the prompts.
    """

    def __init__(self) -> None:
        self.convolution: Tensor | None = None
        self.recurrent: Tensor | None = None

    def repeat(self, times: int) -> None:
        """The states for so many responses of each prompt, in the order of stacked responses."""
        assert self.convolution is not None
        assert self.recurrent is not None
        self.convolution = self.convolution.repeat(times, 1, 1)
        self.recurrent = self.recurrent.repeat(times, 1, 1, 1)

    def get_conv_state(self, *_: Any, **__: Any) -> Tensor | None:
        return self.convolution

    def get_recurrent_state(self, *_: Any, **__: Any) -> Tensor | None:
        return self.recurrent

    def is_recording_past(self, _: int) -> bool:
        """Never take the path of a single token, which writes in place."""
        return True

    def update_conv_state(
        self, columns: Tensor, *_: Any, conv_kernel_size: int, **__: Any
    ) -> Tensor:
        """The columns (batch, channels, length), with those before them."""
        if self.convolution is not None:
            columns = torch.cat((self.convolution, columns), dim=-1)
        kept = conv_kernel_size - 1
        self.convolution = F.pad(columns, (max(kept - columns.shape[-1], 0), 0))[..., -kept:]
        return columns

    def update_recurrent_state(self, state: Tensor, *_: Any, **__: Any) -> Tensor:
        self.recurrent = state
        return state
