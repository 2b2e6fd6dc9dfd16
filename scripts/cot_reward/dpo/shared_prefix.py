"""A forward in which the responses to one prompt share it: [prompt | chosen | rejected].

TRL scores a pair as two rows, each with the whole prompt. Here the backbone of a Qwen2-VL or
Qwen2.5-VL runs one row per pair instead and hands its states back in TRL's order, so that TRL's
fused LM head, losses and metrics work on them unchanged. The result is the same, but for rounding:
in a causal model the states of a prompt do not depend on what follows it.

The prompt's last token predicts the first token of every response. It therefore stands at the head
of each response instead of at the prompt's end, at the same position, and sees the same tokens.

A row has the layout (P prompt tokens, then W1, W2, ... tokens of each response; all right-padded):

    prompt_ids, prompt_mask, prompt_mm_token_type_ids   (pairs, P), without the last prompt token
    input_ids             (2 x pairs, max W): last prompt token and response, chosen ones first
    widths                (W1, W2), the longest chosen and the longest rejected of the batch
    pixel_values, image_grid_thw                        of the prompts, each image once

Attention needs no (P + W) x (P + W) mask: prompt tokens see the prompt causally, for which kernels
need no mask at all, and response tokens have one of (W1 + W2) x (P + W1 + W2).
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

ATTENTION = "shared_prefix"
# model_type of a configuration; their backbones have the same parts and arguments.
SUPPORTED = ("qwen2_vl", "qwen2_5_vl")


def unsupported(config: PretrainedConfig, attention: str | None = None) -> str:
    """Why a model cannot run shared prompts, or ""."""
    if config.model_type not in SUPPORTED:
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
    """SDPA on (batch, heads, length, size); what lies before the mask's rows is a causal prompt.

    A mask with fewer rows than there are queries is that of the last queries; any other call is
    plain SDPA.
    """
    prompt = 0 if attention_mask is None else query.shape[2] - attention_mask.shape[-2]
    if not prompt:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
    # Padding of a prompt stands behind it, where no real token sees it.
    first, _ = sdpa_attention_forward(
        module, query[:, :, :prompt], key[:, :, :prompt], value[:, :, :prompt], None, **settings
    )
    rest, _ = sdpa_attention_forward(
        module, query[:, :, prompt:], key, value, attention_mask, **settings
    )
    return torch.cat((first, rest), dim=1), None


AttentionInterface.register(ATTENTION, attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def response_mask(prompt_mask: Tensor, widths: tuple[int, ...]) -> Tensor:
    """What response tokens see: their prompt, and of their own response what is not after them.

    `prompt_mask` is (pairs, P); returns booleans of (pairs, 1, sum of widths, P + sum of widths).
    """
    device = prompt_mask.device
    own = torch.block_diag(
        *(torch.ones(width, width, device=device, dtype=torch.bool).tril() for width in widths)
    )
    pairs, queries = len(prompt_mask), len(own)
    seen = prompt_mask.bool()[:, None, None, :].expand(pairs, 1, queries, -1)
    return torch.cat((seen, own.expand(pairs, 1, -1, -1)), dim=-1)


def _positions(
    backbone: Any, ids: Tensor, mask: Tensor, types: Tensor, grid: Tensor, widths: tuple[int, ...]
) -> Tensor:
    """M-RoPE positions, (3, pairs, length): every response starts where the prompt ends."""
    prompt, _ = backbone.get_rope_index(
        input_ids=ids, mm_token_type_ids=types, image_grid_thw=grid, attention_mask=mask
    )
    start = prompt.amax(dim=(0, 2)) + 1
    parts = [prompt]
    for width in widths:
        own = start[:, None] + torch.arange(width, device=ids.device)
        parts.append(own.expand(3, -1, -1))
    return torch.cat(parts, dim=-1)


def _rows(prompt_ids: Tensor, input_ids: Tensor, widths: tuple[int, ...]) -> Tensor:
    """(pairs, P + sum of widths) from TRL's (responses x pairs, max width)."""
    groups = input_ids.chunk(len(widths))
    parts = [group[:, :width] for group, width in zip(groups, widths, strict=True)]
    return torch.cat([prompt_ids, *parts], dim=1)


def _responses(states: Tensor, widths: tuple[int, ...]) -> Tensor:
    """The reverse of `_rows` for states (pairs, length, hidden): without those of the prompt."""
    parts = states[:, states.shape[1] - sum(widths) :].split(widths, dim=1)
    longest = max(widths)
    return torch.cat([F.pad(part, (0, 0, 0, longest - part.shape[1])) for part in parts])


def attach(model: Any) -> None:
    """Teach a model (not a PEFT wrapper of one) to run batches with shared prompts.

    Other calls, generation among them, run as before. A second call changes nothing.
    """
    backbone = model.base_model
    if getattr(backbone, "shares_prefix", False):
        return
    own = backbone.forward

    def forward(
        self: Any,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        prompt_ids: Tensor | None = None,
        prompt_mask: Tensor | None = None,
        prompt_mm_token_type_ids: Tensor | None = None,
        widths: tuple[int, ...] = (),
        **others: Any,
    ) -> Any:
        if prompt_ids is None:
            return own(input_ids=input_ids, attention_mask=attention_mask, **others)
        types = prompt_mm_token_type_ids
        if input_ids is None or prompt_mask is None or types is None:
            raise TypeError("a shared prompt needs input_ids, prompt_mask and its token types")
        pixels, grid = others.pop("pixel_values"), others.pop("image_grid_thw")
        # The model's own forward, which makes logits, passes these as None.
        for name in ("position_ids", "mm_encoder_outputs", "mm_token_type_ids"):
            others.pop(name, None)
        # Gradient checkpointing with an adapter makes embeddings require gradients, those of
        # patches too, and a frozen tower would be recorded.
        frozen = not any(parameter.requires_grad for parameter in self.visual.parameters())
        with torch.no_grad() if frozen else nullcontext():
            features = self.get_image_features(pixels, grid, return_dict=True)
        outputs = own(
            input_ids=_rows(prompt_ids, input_ids, widths),
            attention_mask={"full_attention": response_mask(prompt_mask, widths)},
            position_ids=_positions(self, prompt_ids, prompt_mask, types, grid, widths),
            mm_encoder_outputs={"image": features},
            **others,
        )
        outputs.last_hidden_state = _responses(outputs.last_hidden_state, widths)
        return outputs

    backbone.forward = MethodType(forward, backbone)
    backbone.shares_prefix = True
    model.set_attn_implementation({"text_config": ATTENTION})
