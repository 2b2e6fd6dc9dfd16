"""A tiny Qwen2.5-VL, Qwen3-VL or Qwen3.5 with random weights, its tokenizer and its processor.

LLaMA-Factory, vLLM and TRL load it as they load a released one.
"""

from dataclasses import dataclass
from typing import Any

from transformers import (
    GenerationConfig,
    PretrainedConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLProcessor,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    Qwen3_5Config,
    Qwen3VLConfig,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)
from transformers.models.auto import AutoModelForImageTextToText

from cot_reward.demo import tiny_tokenizer, world
from cot_reward.demo.settings import ModelSizes
from cot_reward.demo.tiny_tokenizer import SPECIAL_TOKENS

MERGE_SIZE = 2  # patches in a row and in a column of an image token


@dataclass(frozen=True)
class Family:
    """What one family has of its own, besides the sizes."""

    config: type[PretrainedConfig]
    processor: Any
    video_processor: Any
    patch_size: int  # pixels
    # Whether a chat without a system prompt gets the default one.
    system: bool

    @property
    def token_pixels(self) -> int:
        """The side of an image token."""
        return self.patch_size * MERGE_SIZE

    @property
    def image_tokens(self) -> int:
        """The image tokens of one of the world's pictures, as the processor resizes it."""
        return round(world.SIDE_PIXELS / self.token_pixels) ** 2


FAMILIES = {
    "qwen2_5_vl": Family(
        Qwen2_5_VLConfig, Qwen2_5_VLProcessor, Qwen2VLVideoProcessor, patch_size=14, system=True
    ),
    "qwen3_vl": Family(
        Qwen3VLConfig, Qwen3VLProcessor, Qwen3VLVideoProcessor, patch_size=16, system=False
    ),
    "qwen3_5": Family(
        Qwen3_5Config, Qwen3VLProcessor, Qwen3VLVideoProcessor, patch_size=16, system=False
    ),
}


def build_tokenizer(template: str, vocab: int, family: str = "qwen2_5_vl") -> Qwen2Tokenizer:
    """See `tiny_tokenizer.build_tokenizer`; chats are written as the family's are."""
    return tiny_tokenizer.build_tokenizer(template, vocab, FAMILIES[family].system)


def build_processor(tokenizer: Qwen2Tokenizer, family: str = "qwen2_5_vl") -> Any:
    """The family's processor.

    Its pixel bounds are wide. The project has one bound on pixels (`media.images.bound`, the
    arithmetic of LLaMA-Factory), and the processor must not bound a second time. It keeps the
    demo's pictures at their own size, or with patches of 16 makes 64 x 64 of them.
    """
    kind = FAMILIES[family]
    bounds = {"shortest_edge": kind.token_pixels**2, "longest_edge": 1280 * kind.token_pixels**2}
    shape: dict[str, Any] = {
        "patch_size": kind.patch_size,
        "merge_size": MERGE_SIZE,
        "temporal_patch_size": 2,
    }
    return kind.processor(
        image_processor=Qwen2VLImageProcessor(size=dict(bounds), **shape),
        tokenizer=tokenizer,
        video_processor=kind.video_processor(size=dict(bounds), **shape),
        chat_template=tokenizer.chat_template,
    )


def build_model(tokenizer: Qwen2Tokenizer, sizes: ModelSizes, family: str = "qwen2_5_vl") -> Any:
    """A model of these sizes with random float32 weights, from torch's global generator."""
    kind = FAMILIES[family]
    ids: dict[str, Any] = {
        token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS
    }
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": sizes.hidden,
        "intermediate_size": sizes.mlp,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads,
        "max_position_embeddings": 32768,
        "rope_parameters": _rope(sizes.hidden // sizes.heads, family),
        "tie_word_embeddings": True,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
        # At the usual 0.02 a model as narrow as this learned too little in 600 steps.
        "initializer_range": 0.05,
    }
    vision = {
        "depth": sizes.vision_layers,
        "hidden_size": sizes.vision_hidden,
        "intermediate_size": sizes.vision_mlp,
        "num_heads": sizes.vision_heads,
        "out_hidden_size": sizes.hidden,
        "patch_size": kind.patch_size,
        "spatial_merge_size": MERGE_SIZE,
        "temporal_patch_size": 2,
        "initializer_range": 0.05,
    }
    own_text, own_vision = _own_parts(sizes, family)
    config = kind.config(
        text_config=text | own_text,
        vision_config=vision | own_vision,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    model = AutoModelForImageTextToText.from_config(config)
    model.generation_config = GenerationConfig(
        bos_token_id=ids["<|endoftext|>"],
        eos_token_id=[ids["<|im_end|>"], ids["<|endoftext|>"]],
        pad_token_id=ids["<|endoftext|>"],
    )
    return model


def _rope(head_size: int, family: str) -> dict[str, Any]:
    """The rotary embedding: time, height and width share the frequencies 1 : 1.5 : 1.5."""
    # Released Qwen3.5 models rotate a quarter of each head, 64 of 256; of 32 that is too little.
    share = 0.5 if family == "qwen3_5" else 1.0
    frequencies = int(head_size * share) // 2
    for_time = frequencies // 4
    for_height = (frequencies - for_time) // 2
    sections = [for_time, for_height, frequencies - for_time - for_height]
    rope: dict[str, Any] = {"rope_type": "default", "mrope_section": sections}
    if family == "qwen2_5_vl":
        return rope | {"rope_theta": 1_000_000.0}
    return rope | {
        "rope_theta": 5_000_000.0,
        "mrope_interleaved": True,
        "partial_rotary_factor": share,
    }


def _own_parts(sizes: ModelSizes, family: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The text's and the vision tower's settings that one family alone has."""
    if family == "qwen2_5_vl":
        return {"max_window_layers": sizes.layers}, {
            "window_size": 112,
            "fullatt_block_indexes": [sizes.vision_layers - 1],
        }
    head_size = sizes.hidden // sizes.heads
    positions = {"num_position_embeddings": 16**2}
    if family == "qwen3_vl":
        return {"head_dim": head_size}, positions | {
            "deepstack_visual_indexes": list(range(min(sizes.vision_layers, sizes.layers) - 1))
        }
    # As in released models: vLLM's kernel for CPUs has no other size. In a narrower model than the
    # demo's, heads so wide would leave the smallest gradients few digits in fp32.
    delta_size = 128 if sizes.hidden >= 128 else head_size
    # The last layer has full attention, and every fourth one before it.
    kinds = [
        "linear_attention" if (sizes.layers - 1 - layer) % 4 else "full_attention"
        for layer in range(sizes.layers)
    ]
    return {
        "head_dim": head_size,
        "layer_types": kinds,
        "linear_num_key_heads": sizes.kv_heads,
        "linear_num_value_heads": sizes.heads,
        "linear_key_head_dim": delta_size,
        "linear_value_head_dim": delta_size,
    }, positions
