"""Qwen2-VL and Qwen2.5-VL: full attention in every layer."""

from typing import Any

from torch import Tensor

from cot_reward.dpo.families.layout import Layout

MODEL_TYPES = ("qwen2_vl", "qwen2_5_vl")
TEXT_CONFIG: dict[str, Any] = {}
# Qwen2-VL and Qwen2.5-VL have other names for the same sizes, and ignore each other's.
VISION_CONFIG: dict[str, Any] = {
    "embed_dim": 16,
    "mlp_ratio": 1,
    "window_size": 16,
    "fullatt_block_indexes": [0],
}


def attention_masks(layout: Layout) -> dict[str, Tensor]:
    """By the name of the layers' kind of attention."""
    return {"full_attention": layout.response_mask()}


def attach(backbone: Any) -> None:
    """Nothing is replaced."""
