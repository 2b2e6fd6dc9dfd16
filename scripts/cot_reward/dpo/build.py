"""Stage 3's trainer: the model, what of it is trained, and its reference log-probs."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from accelerate import PartialState
from datasets import Dataset
from transformers import AutoConfig, PretrainedConfig
from transformers.integrations import deepspeed as hf_deepspeed
from trl import ModelConfig, get_peft_config, get_quantization_config

from cot_reward.dpo import selfcheck, shared_prefix
from cot_reward.dpo.collator import PairCollator, SharedPrefixCollator
from cot_reward.dpo.load import by_main, load_processor
from cot_reward.dpo.reference import Cache, model_digest
from cot_reward.dpo.settings import PairConfig, ScriptArguments
from cot_reward.dpo.trainer import PairTrainer
from cot_reward.errors import UserError

# Names in Qwen2-VL, Qwen2.5-VL and Qwen3-VL, then in LLaVA; LLaMA-Factory freezes the same parts.
_PROJECTOR = r"(.*\.)?(visual\.(deepstack_)?merger\w*|multi_modal_projector)(\..*)?"
_TOWER = r"(.*\.)?(visual\.(?!merger|deepstack_merger)|vision_tower\.).*"
# Raised when reference log-probs come to depend on something that their key does not hold.
_REFERENCE_FORMAT = 1


def build_trainer(
    script: ScriptArguments,
    training: PairConfig,
    model: ModelConfig,
    train_rows: Dataset,
    eval_rows: Dataset | None = None,
) -> PairTrainer:
    """The trainer with model, reference log-probs and processor, for rows of `dpo.load`."""
    name = str(model.model_name_or_path)
    given = training.model_init_kwargs
    training.model_init_kwargs = {
        "revision": model.model_revision,
        "trust_remote_code": training.trust_remote_code,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
    } | (given if isinstance(given, dict) else {})
    processor = load_processor(training, model)
    config = AutoConfig.from_pretrained(
        name, revision=model.model_revision, trust_remote_code=training.trust_remote_code
    )
    if script.shared_prefix:
        attention = training.model_init_kwargs["attn_implementation"]
        if why := shared_prefix.unsupported(config, attention):
            script.shared_prefix = script.reference_cache = False
            if PartialState().is_main_process:
                print(f"stock TRL runs every prompt four times a step: {why}", file=sys.stderr)
        else:
            with unsharded_models():
                selfcheck.check(config)
    _check_engine(script, training, model)
    frozen = [_TOWER] * script.freeze_vision_tower
    frozen += [_PROJECTOR] * script.freeze_multi_modal_projector
    peft_config: Any = get_peft_config(model)
    if peft_config is not None:
        # As LLaMA-Factory: every linear layer, save those of frozen parts.
        peft_config.target_modules = peft_config.target_modules or "all-linear"
        peft_config.exclude_modules = "|".join(frozen) or None
    collator = SharedPrefixCollator if script.shared_prefix else PairCollator
    trainer = PairTrainer(
        shared=script.shared_prefix,
        cache=_cache(script, training, model, config) if script.reference_cache else None,
        model=name,
        args=training,
        data_collator=collator(
            processor,
            max_length=training.max_length,
            image_folder=Path(script.image_folder),
            image_max_pixels=script.image_max_pixels,
        ),
        train_dataset=train_rows,
        eval_dataset=eval_rows,
        processing_class=processor,
        quantization_config=get_quantization_config(model),
        peft_config=peft_config,
    )
    freeze(trainer.model, frozen)
    return trainer


def _check_engine(script: ScriptArguments, training: PairConfig, model: ModelConfig) -> None:
    """Refuse what could not be saved, and turn off what DeepSpeed and FSDP leave no room for."""
    plugin: Any = training.deepspeed_plugin
    if plugin is not None and plugin.zero_stage == 3:
        zero = plugin.deepspeed_config["zero_optimization"]
        if not zero.get("stage3_gather_16bit_weights_on_model_save"):
            raise UserError(
                "DeepSpeed ZeRO-3 without stage3_gather_16bit_weights_on_model_save (accelerate: "
                "zero3_save_16bit_model) leaves no model that can be served; set it to true"
            )
    if model.use_peft and script.reference_cache and _is_fsdp(training):
        # Under FSDP the policy stands nowhere whole before training, and an adapter's reference is
        # the policy without it.
        script.reference_cache = False
        if PartialState().is_main_process:
            print("FSDP with an adapter: the reference runs live, not cached", file=sys.stderr)


def freeze(model: Any, patterns: list[str]) -> None:
    """Take the parameters whose names match from training.

    Raises UserError when a pattern matches none: the model is then laid out in another way, and
    would be trained in parts that should stay.
    """
    for pattern in patterns:
        matching = [p for name, p in model.named_parameters() if re.fullmatch(pattern, name)]
        if not matching:
            flag = "vision_tower" if pattern == _TOWER else "multi_modal_projector"
            raise UserError(
                f"--freeze_{flag} is on, but {type(model).__name__} has no such part that is known "
                f"here; go on with --freeze_{flag} false"
            )
        for parameter in matching:
            parameter.requires_grad_(False)


def _cache(
    script: ScriptArguments, training: PairConfig, model: ModelConfig, config: PretrainedConfig
) -> Cache:
    """The reference log-probs of this model, and all that they depend on beside the rows."""
    name = str(model.model_name_or_path)
    weights = by_main(
        lambda: (
            model_digest(Path(name))
            if Path(name).is_dir()
            else f"{name}@{getattr(config, '_commit_hash', None) or model.model_revision}"
        )
    )
    about = {
        "format": _REFERENCE_FORMAT,
        "model": weights,
        "image_max_pixels": script.image_max_pixels,
        "ld_alpha": training.ld_alpha,
        "disable_dropout": training.disable_dropout,
        "model_init_kwargs": str(sorted((training.model_init_kwargs or {}).items())),
        # Which turn the weights themselves to bf16, where others run fp32 weights in autocast.
        "engine": "deepspeed" * (training.deepspeed_plugin is not None)
        + "fsdp" * _is_fsdp(training),
        "mixed_precision": [
            training.bf16,
            training.fp16,
            os.environ.get("ACCELERATE_MIXED_PRECISION", "no"),
        ],
        "use_liger_kernel": training.use_liger_kernel,
        "quantization": [
            model.load_in_4bit,
            model.load_in_8bit,
            model.bnb_4bit_quant_type,
            model.use_bnb_nested_quant,
        ],
        "versions": {name: version(name) for name in ("torch", "transformers", "trl")},
    }
    beside = Path(str(training.output_dir)).parent / "reference_cache"
    return Cache(Path(script.reference_cache_dir or beside), about)


def _is_fsdp(training: PairConfig) -> bool:
    return bool(training.fsdp) or os.environ.get("ACCELERATE_USE_FSDP", "false") == "true"


@contextmanager
def unsharded_models() -> Iterator[None]:
    """Models made within stand whole in one process, also under DeepSpeed ZeRO-3."""
    kept = hf_deepspeed._hf_deepspeed_config_weak_ref
    hf_deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        hf_deepspeed._hf_deepspeed_config_weak_ref = kept
