"""Adapters: their precision, and what is done where the base is quantized."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from cot_reward.errors import UserError
from cot_reward.training import lora
from helpers.dpo import trainer_for
from transformers import AutoModelForImageTextToText
from transformers.quantizers.quantizers_utils import should_convert_module
from trl import ModelConfig


def test_adapters_on_a_bf16_base_are_fp32(
    base: Path, folder: Path, pairs: str, tmp_path: Path
) -> None:
    flags = ("--use_peft", "--dtype", "bfloat16", "--freeze_vision_tower")
    trainer, _ = trainer_for(base, folder, pairs, tmp_path / "out", *flags)
    dtypes = {(p.requires_grad, p.dtype) for p in trainer.model.parameters()}
    assert dtypes == {(True, torch.float32), (False, torch.bfloat16)}
    # As TRL leaves them beside a quantized base.
    for parameter in trainer.model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    lora.keep_fp32(trainer.model)
    dtypes = {(p.requires_grad, p.dtype) for p in trainer.model.parameters()}
    assert dtypes == {(True, torch.float32), (False, torch.bfloat16)}


class QuantizedLayer(torch.nn.Module):
    """Frozen weights, and an adapter as TRL leaves it there. `is_quantized` is transformers'."""

    is_quantized = True

    def __init__(self) -> None:
        super().__init__()
        frozen = torch.zeros(4, dtype=torch.uint8)
        self.weight = torch.nn.Parameter(frozen, requires_grad=False)
        self.adapter = torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))


@pytest.mark.parametrize(
    ("is_quantized", "plugin", "dtype"),
    [
        (True, None, torch.float32),
        (False, None, torch.bfloat16),
        # DeepSpeed has fp32 copies of its own.
        (True, "plugin", torch.bfloat16),
    ],
)
def test_only_adapters_beside_a_quantized_base_are_changed(
    is_quantized: bool, plugin: str | None, dtype: torch.dtype
) -> None:
    layer = QuantizedLayer()
    layer.is_quantized = is_quantized
    lora.keep_fp32_beside_quantized(layer, SimpleNamespace(deepspeed_plugin=plugin))
    assert (layer.adapter.dtype, layer.weight.dtype) == (dtype, torch.uint8)


def test_updates_at_1e_5_are_lost_in_bf16() -> None:
    """Why `keep_fp32` is there: Adam's update is about the learning rate, whatever the gradient."""
    moved = {}
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        weight = torch.nn.Parameter(torch.empty(64, 512).uniform_(-0.04, 0.04).to(dtype))
        before = weight.detach().clone()
        weight.grad = torch.randn_like(weight)
        torch.optim.AdamW([weight], lr=1e-5, weight_decay=0).step()
        moved[dtype] = (weight != before).float().mean().item()
    assert moved[torch.float32] > 0.99
    assert moved[torch.bfloat16] < 0.1


def test_only_the_language_model_is_quantized(bases: dict[str, Path]) -> None:
    skipped = lora.quantization(ModelConfig(load_in_4bit=True)).llm_int8_skip_modules  # type: ignore[union-attr]
    for base in bases.values():
        model = AutoModelForImageTextToText.from_pretrained(base)
        linear = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)]
        quantized = [name for name in linear if should_convert_module(name, skipped)]
        assert quantized == [name for name in linear if "language_model.layers" in name]
        assert len(quantized) >= 7 * model.config.get_text_config().num_hidden_layers
    assert not should_convert_module("vision_tower.blocks.0.attn.qkv", skipped)
    assert not should_convert_module("multi_modal_projector.linear_1", skipped)
    assert should_convert_module("language_model.layers.0.mlp.visualize", skipped)


def test_without_the_flag_nothing_is_quantized() -> None:
    assert lora.quantization(ModelConfig()) is None
    config = lora.quantization(ModelConfig(load_in_8bit=True))
    assert config is not None
    assert config.load_in_8bit
    assert not config.load_in_4bit


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "cannot be trained themselves; name the model that it was made from"),
        (("--use_peft", "--merge_adapter"), "would be rounded when it is merged"),
    ],
)
def test_a_quantized_model_is_refused_before_it_is_loaded(
    base: Path, folder: Path, pairs: str, tmp_path: Path, flags: tuple[str, ...], message: str
) -> None:
    made = tmp_path / "quantized"
    shutil.copytree(base, made)
    config = json.loads((made / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (made / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"quantized: its weights are quantized") as caught:
        trainer_for(made, folder, pairs, tmp_path / "out", *flags)
    assert message in str(caught.value)
    assert "--load_in_4bit true" in str(caught.value)
