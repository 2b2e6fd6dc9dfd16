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

import inspect
from contextlib import nullcontext
from types import MethodType
from typing import Any

import torch
import transformers
import trl
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from trl import DPOTrainer
from trl.trainer.utils import add_fused_lm_head

from cot_reward.errors import UserError

ATTENTION = "shared_prefix"
# model_type of a configuration; their backbones have the same parts and arguments.
SUPPORTED = ("qwen2_vl", "qwen2_5_vl")
_TOLERANCE = 1e-4


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


def check(config: PretrainedConfig) -> None:
    """Score a pair both ways on a model of a few thousand weights, and compare.

    The forward above relies on the insides of TRL and transformers. Raises UserError when they are
    not those that it was made for.
    """
    versions = f"TRL {trl.__version__} and transformers {transformers.__version__}"
    way_out = "install the versions of requirements.txt, or go on without by --shared_prefix false"
    try:
        _check_names()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            difference = _difference(_toy(config))
    except Exception as error:
        raise UserError(
            f"with {versions} prompts cannot be shared ({type(error).__name__}: {error}); {way_out}"
        ) from error
    if not difference < _TOLERANCE:
        raise UserError(
            f"with {versions} a shared prompt gives other log-probs than stock TRL: they differ by "
            f"{difference:.2g}; {way_out}"
        )


# What functions of the trainers read or call, and `PairTrainer` relies on.
_RELIED_ON: list[tuple[type, str, tuple[str, ...]]] = [
    (DPOTrainer, "__init__", ("_prepare_dataset", "_precompute_ref_logps")),
    (DPOTrainer, "_compute_loss", ("loss_types", "loss_weights", "precompute_ref_logps")),
    (DPOTrainer, "compute_ref_log_probs", ("log_probs", "ld_alpha")),
    (DPOTrainer, "log", ("_metrics",)),
    (transformers.Trainer, "_run_epoch", ("get_batch_samples", "training_step")),
    (transformers.Trainer, "training_step", ("current_gradient_accumulation_steps",)),
    (transformers.Trainer, "train", ("_load_from_checkpoint",)),
]


def _check_names() -> None:
    """Raise AttributeError when a function of the trainers does not do what is relied on."""
    for trainer, function, names in _RELIED_ON:
        code = inspect.unwrap(getattr(trainer, function)).__code__
        for name in names:
            if name not in code.co_names:
                raise AttributeError(f"{trainer.__name__}.{function} knows no {name}")


_IMAGE, _MERGE, _GRID = 1, 2, (1, 4, 6)
_TOY_TEXT = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "initializer_range": 0.5,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
}
_TOY_VISION = {"depth": 1, "num_heads": 2, "patch_size": 4, "spatial_merge_size": _MERGE}
# Qwen2-VL's names, then Qwen2.5-VL's: each configuration passes over what it does not know.
_TOY_VISION |= {"embed_dim": 16, "mlp_ratio": 1}
_TOWERS: dict[str, dict[str, Any]] = {
    "qwen2_vl": {"hidden_size": 16},
    "qwen2_5_vl": {
        "hidden_size": 16,
        "intermediate_size": 16,
        "out_hidden_size": 16,
        "window_size": 16,
        "fullatt_block_indexes": [0],
    },
}


def _toy(config: PretrainedConfig) -> Any:
    """A model of the same class with random weights."""
    made = type(config)(
        text_config=_TOY_TEXT,
        vision_config=_TOY_VISION | _TOWERS[config.model_type],
        image_token_id=_IMAGE,
        video_token_id=2,
        vision_start_token_id=3,
        vision_end_token_id=4,
    )
    model = transformers.AutoModelForImageTextToText.from_config(made, dtype=torch.float32)
    add_fused_lm_head(model, outputs=("log_probs",))
    return model.eval()


def _difference(model: Any) -> float:
    """The largest difference between the log-probs of a shared row and of two stock rows."""
    tokens = _GRID[1] * _GRID[2] // _MERGE**2
    prompt = torch.tensor([[5, 3, *[_IMAGE] * tokens, 4, 6, 7]])
    types = (prompt == _IMAGE).int()
    responses = torch.tensor([[8, 9, 10, 11], [12, 9, 13, 0]])
    real = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    pixels = torch.randn(_GRID[1] * _GRID[2], 3 * 2 * 4 * 4)
    grid = torch.tensor([_GRID])
    labels = responses.masked_fill(real == 0, -100)
    with torch.no_grad():
        double = prompt.expand(2, -1)
        stock = model(
            input_ids=torch.cat((double, responses), 1),
            attention_mask=torch.cat((torch.ones_like(double), real), 1),
            mm_token_type_ids=torch.cat((types.expand(2, -1), torch.zeros_like(responses)), 1),
            pixel_values=torch.cat((pixels, pixels)),
            image_grid_thw=torch.cat((grid, grid)),
            labels=torch.cat((torch.full_like(double, -100), labels), 1),
            fused_lm_head=True,
        ).log_probs[:, -responses.shape[1] :]
        attach(model)
        last = prompt[:, -1:].expand(2, -1)
        shared = model(
            prompt_ids=prompt[:, :-1],
            prompt_mask=torch.ones_like(prompt[:, :-1]),
            prompt_mm_token_type_ids=types[:, :-1],
            widths=(5, 4),
            input_ids=torch.cat((last, responses), 1),
            pixel_values=pixels,
            image_grid_thw=grid,
            labels=torch.cat((torch.full_like(last, -100), labels), 1),
            fused_lm_head=True,
        ).log_probs
    return float((stock - shared).abs().max())
