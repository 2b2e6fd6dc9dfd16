"""The shared-prefix forward: both responses share their prompt in one row of a batch.

TRL scores a pair as two rows, each with the full prompt. Here the backbone of a model of
`families` runs one row per pair, [prompt | chosen | rejected], and returns its states in TRL's
order, so that TRL's fused LM head, losses and metrics work on them unchanged. The result is the
same up to rounding: in a causal model the states of a prompt do not depend on the tokens after it.

The prompt's last token is moved to the head of the responses. It predicts the first token of each,
so each response starts with a copy of it, which has the same position and sees the same tokens.
`collator.SharedPrefixCollator` builds these rows.

The layout of a row (P prompt tokens, then W1, W2, ... tokens of each response; all right-padded):

    prompt_ids, prompt_mask, prompt_mm_token_type_ids   (pairs, P), without the last prompt token
    input_ids             (2 x pairs, max W): last prompt token and response, chosen ones first
    widths                (W1, W2), the longest chosen and the longest rejected of the batch
    pixel_values, image_grid_thw                        of the prompts, each image once

Attention needs no (P + W) x (P + W) mask. Prompt tokens see the prompt causally, and kernels need
no mask for that; response tokens have a mask of (W1 + W2) x (P + W1 + W2).
"""

from contextlib import nullcontext
from types import MethodType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from cot_reward.dpo.families import family_of
from cot_reward.dpo.families.layout import Layout

ATTENTION = "shared_prefix"


def unsupported(config: PretrainedConfig, attention: str | None = None) -> str:
    """The reason why a model cannot run shared prompts; "" when it can."""
    if family_of(config) is None:
        return f"models of type {config.model_type} have no shared-prefix forward here"
    if "sliding_attention" in (getattr(config.get_text_config(), "layer_types", None) or ()):
        return "this model has layers with sliding-window attention"
    if attention not in (None, "sdpa"):
        return f"--attn_implementation is {attention}, and shared prompts need sdpa"
    return ""


def attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """SDPA on (batch, heads, length, size) for a causal prompt and masked responses.

    When the mask has fewer rows than there are queries, it belongs to the last queries, and the
    queries before are the prompt. Any other call is plain SDPA.
    """
    prompt = 0 if attention_mask is None else query.shape[2] - attention_mask.shape[-2]
    if not prompt:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
    # A prompt is padded on the right, where none of its real tokens sees the padding.
    prompt_states, _ = sdpa_attention_forward(
        module, query[:, :, :prompt], key[:, :, :prompt], value[:, :, :prompt], None, **settings
    )
    response_states, _ = sdpa_attention_forward(
        module, query[:, :, prompt:], key, value, attention_mask, **settings
    )
    return torch.cat((prompt_states, response_states), dim=1), None


AttentionInterface.register(ATTENTION, attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def split_last_token(ids: Tensor, mask: Tensor, pad: int) -> tuple[Tensor, Tensor, Tensor]:
    """Cut the last token off right-padded prompts (pairs, P): it heads each of their responses.

    Returns ids and mask of shape (pairs, P - 1), and the last tokens (pairs, 1).
    """
    lengths = mask.sum(dim=1, keepdim=True)
    last = ids.gather(1, lengths - 1)
    kept = torch.arange(ids.shape[1] - 1) < lengths - 1
    return ids[:, :-1].masked_fill(~kept, pad), kept.to(mask.dtype), last


def row_positions(
    backbone: Any, ids: Tensor, mask: Tensor, types: Tensor, grid: Tensor, widths: tuple[int, ...]
) -> Tensor:
    """M-RoPE positions, (3, pairs, length): every response starts where the prompt ends."""
    prompt, _ = backbone.get_rope_index(
        input_ids=ids, mm_token_type_ids=types, image_grid_thw=grid, attention_mask=mask
    )
    start = prompt.amax(dim=(0, 2)) + 1
    parts = [prompt]
    for width in widths:
        response = start[:, None] + torch.arange(width, device=ids.device)
        parts.append(response.expand(3, -1, -1))
    return torch.cat(parts, dim=-1)


def _join_rows(prompt_ids: Tensor, input_ids: Tensor, widths: tuple[int, ...]) -> Tensor:
    """Token ids (pairs, P + sum of widths) from TRL's (responses x pairs, max width)."""
    groups = input_ids.chunk(len(widths))
    parts = [group[:, :width] for group, width in zip(groups, widths, strict=True)]
    return torch.cat([prompt_ids, *parts], dim=1)


def _split_responses(states: Tensor, widths: tuple[int, ...]) -> Tensor:
    """States (responses x pairs, max width, hidden) from rows (pairs, length, hidden).

    The reverse of `_join_rows`; the prompts' states are dropped.
    """
    parts = states[:, states.shape[1] - sum(widths) :].split(widths, dim=1)
    longest = max(widths)
    return torch.cat([F.pad(part, (0, 0, 0, longest - part.shape[1])) for part in parts])


def attach(model: Any) -> None:
    """Make a model (without its PEFT wrapper) run batches with shared prompts.

    Calls without `prompt_ids`, generation among them, run as before. A second `attach` changes
    nothing.
    """
    backbone = model.base_model
    if getattr(backbone, "shares_prefix", False):
        return
    family, stock_forward = family_of(model.config), backbone.forward
    assert family is not None, "see `unsupported`"

    def forward(
        self: Any,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        prompt_ids: Tensor | None = None,
        prompt_mask: Tensor | None = None,
        prompt_mm_token_type_ids: Tensor | None = None,
        widths: tuple[int, ...] = (),
        **arguments: Any,
    ) -> Any:
        if prompt_ids is None:
            return stock_forward(input_ids=input_ids, attention_mask=attention_mask, **arguments)
        types = prompt_mm_token_type_ids
        if input_ids is None or prompt_mask is None or types is None:
            raise TypeError("a shared prompt needs input_ids, prompt_mask and its token types")
        pixels, grid = arguments.pop("pixel_values"), arguments.pop("image_grid_thw")
        # The model with the LM head passes these to its backbone as None.
        for name in ("position_ids", "mm_encoder_outputs", "mm_token_type_ids"):
            arguments.pop(name, None)
        # Gradient checkpointing with an adapter makes all embeddings require gradients, also those
        # of patches, and autograd would record a frozen vision tower.
        frozen = not any(parameter.requires_grad for parameter in self.visual.parameters())
        with torch.no_grad() if frozen else nullcontext():
            features = self.get_image_features(pixels, grid, return_dict=True)
        outputs = stock_forward(
            input_ids=_join_rows(prompt_ids, input_ids, widths),
            attention_mask=family.attention_masks(Layout(prompt_mask, widths)),
            position_ids=row_positions(self, prompt_ids, prompt_mask, types, grid, widths),
            mm_encoder_outputs={"image": features},
            **arguments,
        )
        outputs.last_hidden_state = _split_responses(outputs.last_hidden_state, widths)
        return outputs

    family.attach(backbone)
    backbone.forward = MethodType(forward, backbone)
    backbone.shares_prefix = True
    model.set_attn_implementation({"text_config": ATTENTION})
