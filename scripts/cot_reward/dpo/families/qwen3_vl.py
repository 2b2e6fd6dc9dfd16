"""Qwen3-VL: full attention in every layer, and image features of several depths.

The features of the vision tower's inner layers ("deepstack") are added to the states of the image
tokens in the first text layers. They stand in the prompt, so that they are added once a row.
"""

from typing import Any

from torch import Tensor

from cot_reward.dpo.families.layout import Layout

MODEL_TYPES = ("qwen3_vl",)
TEXT_CONFIG: dict[str, Any] = {"head_dim": 8}
VISION_CONFIG: dict[str, Any] = {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]}


def attention_masks(layout: Layout) -> Tensor:
    """The mask itself: the text model takes no dict, and leaves a mask of four dimensions as is."""
    return layout.response_mask()


def attach(backbone: Any) -> None:
    """Nothing is replaced."""
