"""The model of a training with TRL: which files, how it is loaded, which parts are trained."""

import os
import re
import tempfile
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoProcessor, PretrainedConfig, ProcessorMixin
from trl import ModelConfig, get_peft_config

from cot_reward.errors import UserError
from cot_reward.model_folder import fault_of_model
from cot_reward.training.distributed import same_on_every_machine
from cot_reward.training.model_files import model_files

# Parameter names in Qwen2-VL, Qwen2.5-VL and Qwen3-VL, then in LLaVA; the same parts as
# LLaMA-Factory freezes.
_PROJECTOR_NAMES = r"(.*\.)?(visual\.(deepstack_)?merger\w*|multi_modal_projector)(\..*)?"
_TOWER_NAMES = r"(.*\.)?(visual\.(?!merger|deepstack_merger)|vision_tower\.).*"


def check_folders(model: Path, output: Path) -> None:
    """Raise UserError when the model cannot be loaded or the output not be written.

    A model of the hub is no folder, and is not looked at.
    """
    if model.is_dir() and (fault := fault_of_model(model)):
        raise UserError(f"--model_name_or_path {model}: {fault}")
    if model.is_dir() and model.resolve() == output.resolve():
        raise UserError(f"--output_dir {output}: is the folder of the model that is trained")
    try:
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output):
            pass
    except OSError as error:
        raise UserError(f"--output_dir {output}: cannot be written: {error.strerror}") from None


def load_processor(training: Any, model_config: ModelConfig) -> Any:
    """The model's processor. Raises UserError when there is none."""
    name = str(model_config.model_name_or_path)
    try:
        processor = AutoProcessor.from_pretrained(
            name, revision=model_config.model_revision, trust_remote_code=training.trust_remote_code
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"--model_name_or_path {name}: cannot be loaded: {reason}") from None
    if not isinstance(processor, ProcessorMixin):
        raise UserError(
            f"--model_name_or_path {name}: is not a vision-language model with a processor"
        )
    return processor


def load_config(training: Any, model_config: ModelConfig) -> PretrainedConfig:
    """The model's config.json."""
    return AutoConfig.from_pretrained(
        str(model_config.model_name_or_path),
        revision=model_config.model_revision,
        trust_remote_code=training.trust_remote_code,
    )


def pin_model(training: Any, model_config: ModelConfig) -> str:
    """Settle which files the model is, for all that loads them; returns what tells these files."""
    given = training.model_init_kwargs
    revision = model_config.model_revision
    if isinstance(given, dict):
        revision = given.pop("revision", revision)
    name = str(model_config.model_name_or_path)
    what = f"--model_name_or_path {name}"
    files = same_on_every_machine(what, lambda: model_files(name, revision))
    model_config.model_revision = files.revision
    return files.digest


def loading_arguments(training: Any, model_config: ModelConfig) -> dict[str, Any]:
    """What the model is loaded with; keys that the user gave win."""
    given = training.model_init_kwargs
    return {
        "revision": model_config.model_revision,
        "trust_remote_code": training.trust_remote_code,
        "attn_implementation": model_config.attn_implementation,
        "dtype": model_config.dtype,
    } | (given if isinstance(given, dict) else {})


def check_saves_weights(deepspeed_plugin: Any) -> None:
    """Raise UserError when ZeRO-3 would not gather the weights to save them."""
    if deepspeed_plugin is not None and deepspeed_plugin.zero_stage == 3:
        zero = deepspeed_plugin.deepspeed_config["zero_optimization"]
        if not zero.get("stage3_gather_16bit_weights_on_model_save"):
            raise UserError(
                "DeepSpeed ZeRO-3 without stage3_gather_16bit_weights_on_model_save (accelerate: "
                "zero3_save_16bit_model) leaves no model that can be served; set it to true"
            )


def frozen_parts(settings: Any) -> list[str]:
    """The patterns of the parts that the settings freeze, for `peft_config` and `freeze`."""
    frozen = [_TOWER_NAMES] * settings.freeze_vision_tower
    return frozen + [_PROJECTOR_NAMES] * settings.freeze_multi_modal_projector


def peft_config(model_config: ModelConfig, frozen: list[str]) -> Any:
    """The adapter's configuration: as in LLaMA-Factory, all linear layers of unfrozen parts."""
    found: Any = get_peft_config(model_config)
    if found is not None:
        found.target_modules = found.target_modules or "all-linear"
        found.exclude_modules = "|".join(frozen) or None
    return found


def freeze(model: Any, patterns: list[str]) -> None:
    """Exclude the parameters whose names match from training.

    Raises UserError when a pattern matches no parameter: the model then has another layout, and
    parts that should be frozen would be trained.
    """
    for pattern in patterns:
        matching = [p for name, p in model.named_parameters() if re.fullmatch(pattern, name)]
        if not matching:
            part = "vision_tower" if pattern == _TOWER_NAMES else "multi_modal_projector"
            raise UserError(
                f"--freeze_{part} is on, but no part of {type(model).__name__} is known as it; "
                f"use --freeze_{part} false"
            )
        for parameter in matching:
            parameter.requires_grad_(False)


def engine(training: Any) -> str:
    """What shards the training: "deepspeed", "fsdp" or ""."""
    return "deepspeed" * (training.deepspeed_plugin is not None) + "fsdp" * is_fsdp(training)


def is_fsdp(training: Any) -> bool:
    return bool(training.fsdp) or os.environ.get("ACCELERATE_USE_FSDP", "false") == "true"
