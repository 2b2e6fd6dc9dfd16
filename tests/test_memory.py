"""The memory table of scripts/README.md, by arithmetic: no GPU and no weights are needed.

Bytes a parameter: trained 16 (DeepSpeed: bf16 weight 2, bf16 gradient 2, fp32 weight 4, Adam's
state 8; an adapter: fp32 weight 4, gradient 4, Adam's state 8), frozen 2 (bf16), frozen and 4-bit
0.5 and an fp32 scale for 64. The models are made on the meta device from their configurations.
"""

import re
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
import yaml
from helpers.environments import REPO
from peft import LoraConfig, get_peft_model
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

GB = 1e9
# From config.json of Qwen/Qwen2.5-VL-7B-Instruct and Qwen/Qwen2.5-VL-3B-Instruct.
SIZES: dict[str, dict[str, Any]] = {
    "7B": {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
           "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064},
    "3B": {"hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36,
           "num_attention_heads": 16, "num_key_value_heads": 2, "vocab_size": 151936},
}  # fmt: skip
LORA_FILES = {"7B": "configs/dpo_lora.yaml", "3B": "configs/small_gpu/dpo.yaml"}
ROW = re.compile(r"^\| (7B|3B), ([^|]+?) \| (\d+) \| ([\d.]+) GB \|", re.MULTILINE)


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters: `language` with the head, `linear` in the layers' linear weights."""

    language: int
    vision: int
    linear: int
    adapters: int


@cache
def parameters(size: str) -> Parameters:
    vision = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16,
              "out_hidden_size": SIZES[size]["hidden_size"]}  # fmt: skip
    config = Qwen2_5_VLConfig(
        text_config=SIZES[size], vision_config=vision, tie_word_embeddings=size == "3B"
    )
    lora = yaml.safe_load((REPO / LORA_FILES[size]).read_text())
    with torch.device("meta"):
        model: Any = Qwen2_5_VLForConditionalGeneration(config)
        if size == "3B":
            model.tie_weights()
        total = sum(p.numel() for p in model.parameters())
        seen = sum(p.numel() for p in model.model.visual.parameters())
        linear = sum(
            module.weight.numel()
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear) and "language_model.layers" in name
        )
        (target,) = lora["lora_target_modules"]
        adapted = get_peft_model(model, LoraConfig(r=lora["lora_r"], target_modules=target))
    adapters = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    return Parameters(total - seen, seen, linear, adapters)


def states(size: str, method: str, gpus: int) -> float:
    """Bytes on each GPU: weights, gradients and Adam's state. The vision tower is frozen."""
    count = parameters(size)
    every_weight = 2 * (count.language + count.vision)
    if method == "ZeRO-3":
        return (16 * count.language + 2 * count.vision) / gpus
    if method == "ZeRO-2":
        return every_weight + 14 * count.language / gpus
    if method == "LoRA":
        return every_weight + 16 * count.adapters
    assert method == "QLoRA"
    saved = count.linear * (2 - 0.5 - 4 / 64)
    return every_weight - saved + 16 * count.adapters


def test_the_models_are_the_published_ones() -> None:
    """Their numbers of parameters, as the index files on the hub tell them."""
    assert sum((parameters("7B").language, parameters("7B").vision)) == 8_292_166_656
    assert sum((parameters("3B").language, parameters("3B").vision)) == 3_754_622_976


def test_known_values() -> None:
    known = {("ZeRO-3", 8): 15.4, ("ZeRO-3", 4): 30.8, ("ZeRO-2", 8): 29.9}
    for (method, gpus), expected in known.items():
        assert round(states("7B", method, gpus) / GB, 1) == expected


def test_the_table_of_the_readme() -> None:
    rows = ROW.findall((REPO / "scripts/README.md").read_text(encoding="utf-8"))
    assert {(size, method) for size, method, _, _ in rows} == {
        ("7B", "ZeRO-2"), ("7B", "ZeRO-3"), ("7B", "LoRA"), ("7B", "QLoRA"),
        ("3B", "LoRA"), ("3B", "QLoRA"),
    }  # fmt: skip
    told = {(size, method, int(gpus)): float(gb) for size, method, gpus, gb in rows}
    computed = {key: round(states(*key) / GB, 1) for key in told}
    assert told == computed


@pytest.mark.parametrize(
    ("size", "method", "gpus", "memory", "activations"),
    [
        ("7B", "ZeRO-2", 8, 80, 8),
        ("7B", "ZeRO-2", 4, 80, 8),
        ("7B", "ZeRO-3", 2, 80, 8),
        ("7B", "ZeRO-3", 4, 48, 8),
        ("7B", "LoRA", 1, 48, 8),
        ("7B", "QLoRA", 1, 24, 8),
        ("3B", "LoRA", 1, 24, 3.2),
    ],
)
def test_what_is_recommended_fits(
    size: str, method: str, gpus: int, memory: int, activations: float
) -> None:
    """With a tenth of the GPU's memory to spare."""
    assert states(size, method, gpus) / GB + activations < 0.9 * memory


def test_the_chain_takes_zero_2_where_zero_2_fits() -> None:
    profile = yaml.safe_load((REPO / "configs/chain.yaml").read_text())
    assert profile["accelerate"] == "configs/accelerate/zero2.yaml"
    assert states("7B", "ZeRO-2", 2) / GB + 8 > 0.9 * 80  # and where the table says ZeRO-3
