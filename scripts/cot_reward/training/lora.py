"""LoRA adapters: their base quantized or not, their precision, and their merge after training."""

from pathlib import Path
from typing import Any

import torch
from transformers import BitsAndBytesConfig, PretrainedConfig
from trl import ModelConfig, get_quantization_config
from trl.trainer.utils import create_model_from_path

from cot_reward.errors import UserError
from cot_reward.training.distributed import unsharded_models

# Parts of a model that are never quantized: the head, and what turns images into embeddings. A
# regular expression is matched from the beginning of a module's name.
UNQUANTIZED = ("lm_head", r"(.*\.)?(visual|vision_tower|multi_modal_projector)")


def quantization(model_config: ModelConfig) -> BitsAndBytesConfig | None:
    """How the base is quantized while it is loaded; None without `load_in_4bit` and `load_in_8bit`.

    The vision tower stays as it is. It is small, and the merged model has it unquantized: the
    language model is trained on the features that it will be served with.
    """
    config = get_quantization_config(model_config)
    if config is not None:
        config.llm_int8_skip_modules = list(UNQUANTIZED)
    return config


def check_quantized_model(name: str, config: PretrainedConfig, use_peft: bool, merge: bool) -> None:
    """Raise UserError when the model's own files are quantized and cannot be used as asked."""
    if getattr(config, "quantization_config", None) is None:
        return
    found = f"--model_name_or_path {name}: its weights are quantized"
    remedy = "name the model that it was made from, with --load_in_4bit true to save memory"
    if not use_peft:
        raise UserError(f"{found}, and cannot be trained themselves; {remedy} and --use_peft true")
    if merge:
        raise UserError(f"{found}, and an adapter would be rounded when it is merged; {remedy}")


def keep_fp32_beside_quantized(model: Any, training: Any) -> None:
    """Call `keep_fp32` where the base is quantized; DeepSpeed keeps fp32 copies of its own."""
    if getattr(model, "is_quantized", False) and training.deepspeed_plugin is None:
        keep_fp32(model)


def keep_fp32(model: Any) -> None:
    """Keep the trained weights beside a quantized base in fp32.

    TRL makes them bf16. At a learning rate of 1e-5 nearly all updates are then smaller than the
    last bit of a weight, and rounded away.
    """
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.is_floating_point():
            parameter.data = parameter.data.float()


def merge_adapter(output: Path, base: str, model_init_kwargs: dict[str, Any]) -> None:
    """Write the base model with the adapter of output/adapter merged into it.

    The base is loaded again: the weights in training may be sharded or quantized.
    """
    from peft import PeftModel

    # An adapter of an earlier run in this folder would be loaded on top of the merged weights.
    for stale in [output / "adapter_config.json", *output.glob("adapter_model.*")]:
        stale.unlink(missing_ok=True)
    with unsharded_models(), torch.no_grad():
        model = create_model_from_path(base, **model_init_kwargs | {"device_map": None})
        merged: Any = PeftModel.from_pretrained(model, str(output / "adapter")).merge_and_unload()
    merged.save_pretrained(output)
