"""Build stage 3's trainer: the model, its trained and frozen parts, its reference log-probs."""

import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PretrainedConfig
from trl import ModelConfig

from cot_reward.dpo import selfcheck, shared_prefix
from cot_reward.dpo.agreement import Agreement, choose_prompts
from cot_reward.dpo.collator import PairCollator, SharedPrefixCollator
from cot_reward.dpo.reference import ReferenceCache
from cot_reward.dpo.settings import DpoSettings
from cot_reward.dpo.steps import count_steps
from cot_reward.dpo.trainer import PairTrainer
from cot_reward.dpo.trl_settings import PairConfig
from cot_reward.errors import UserError
from cot_reward.training import identity, lora
from cot_reward.training.distributed import broadcast_from_main, print_once, unsharded_models
from cot_reward.training.model import (
    check_saves_weights,
    engine,
    freeze,
    frozen_parts,
    is_fsdp,
    load_config,
    load_processor,
    loading_arguments,
    peft_config,
    pin_model,
)
from cot_reward.training.plain_chat import rewritten

# Raise it when reference log-probs begin to depend on something that their key does not hold.
_REFERENCE_FORMAT = 4


def build_trainer(
    settings: DpoSettings,
    training: PairConfig,
    model_config: ModelConfig,
    train_rows: Dataset,
    eval_rows: Dataset | None = None,
) -> PairTrainer:
    """The trainer with model, reference log-probs and processor, for rows of `dpo.load`.

    Turns `shared_prefix` and `reference_cache` off in `settings` where the model or the engine
    cannot have them. A branch of the hub becomes its present commit in `model_config`. Raises
    UserError for a model that cannot be trained as asked, and for an output folder or a checkpoint
    of another run.
    """
    name = str(model_config.model_name_or_path)
    model_digest = pin_model(training, model_config)
    record = identity.describe(
        settings,
        training,
        model_config,
        row_digests=train_rows["digest"],
        model=model_digest,
        engine=engine(training),
    )
    _check_output(settings, training, record, len(train_rows))
    training.model_init_kwargs = loading_arguments(training, model_config)
    processor = load_processor(training, model_config)
    if chat := rewritten(processor):
        raise UserError(
            f"{name}: its chat template rewrites responses (as {chat!r}), so that other texts "
            f"would be trained than were sampled; run scripts/plain_chat.py {name}"
        )
    config = load_config(training, model_config)
    lora.check_quantized_model(name, config, model_config.use_peft, settings.merge_adapter)
    if settings.shared_prefix:
        attention = training.model_init_kwargs["attn_implementation"]
        settings.shared_prefix = _can_share_prefix(config, attention)
    check_saves_weights(training.deepspeed_plugin)
    if model_config.use_peft and settings.reference_cache and is_fsdp(training):
        # An adapter's reference is the policy without it, and FSDP never has the policy unsharded.
        settings.reference_cache = False
        print_once("FSDP with an adapter: the reference runs live, not cached")
    frozen = frozen_parts(settings)
    collator = SharedPrefixCollator if settings.shared_prefix else PairCollator
    cache = None
    if settings.reference_cache:
        cache = ReferenceCache(
            settings.cache_folder(Path(str(training.output_dir))),
            _reference_dependencies(settings, training, model_config, model_digest),
        )
    trainer = PairTrainer(
        record=record,
        shared=settings.shared_prefix,
        cache=cache,
        model=name,
        args=training,
        data_collator=collator(
            processor,
            max_length=training.max_length,
            image_folder=Path(settings.image_folder),
            image_max_pixels=settings.image_max_pixels,
            preference_tokens=settings.preference_tokens,
        ),
        train_dataset=train_rows,
        eval_dataset=eval_rows,
        processing_class=processor,
        quantization_config=lora.quantization(model_config),
        peft_config=peft_config(model_config, frozen),
    )
    freeze(trainer.model, frozen)
    lora.keep_fp32_beside_quantized(trainer.model, training)
    if settings.agreement_steps:
        prompts = choose_prompts(eval_rows or train_rows, settings.agreement_rows)
        trainer.add_callback(Agreement(trainer, settings.agreement_steps, prompts))
    return trainer


def _check_output(
    settings: DpoSettings, training: PairConfig, record: identity.Record, pairs: int
) -> None:
    """Raise UserError when the output folder or the checkpoint is another run's."""
    line = broadcast_from_main(
        lambda: identity.check(
            record,
            Path(str(training.output_dir)),
            training.resume_from_checkpoint,
            settings.overwrite_output_dir,
            count_steps(training, pairs).total,
        )
    )
    if line:
        print_once(line)


def _can_share_prefix(config: PretrainedConfig, attention: str | None) -> bool:
    """Whether the model runs shared prompts; one line says why not.

    Raises UserError when a self-check fails.
    """
    if reason := shared_prefix.unsupported(config, attention):
        print_once(f"stock TRL's forward runs a pair's prompt twice: {reason}")
        return False
    with unsharded_models():
        selfcheck.check(config)
    return True


def _reference_dependencies(
    settings: DpoSettings,
    training: PairConfig,
    model_config: ModelConfig,
    model: str,
) -> dict[str, Any]:
    """All that the reference log-probs depend on, besides prompts, images and texts.

    `model` tells the model's files.
    """
    return {
        "format": _REFERENCE_FORMAT,
        "model": model,
        "image_max_pixels": settings.image_max_pixels,
        "disable_dropout": training.disable_dropout,
        "model_init_kwargs": str(sorted((training.model_init_kwargs or {}).items())),
        # These engines turn the weights themselves to bf16; otherwise autocast runs fp32 weights.
        "engine": engine(training),
        "mixed_precision": [
            training.bf16,
            training.fp16,
            os.environ.get("ACCELERATE_MIXED_PRECISION", "no"),
        ],
        "use_liger_kernel": training.use_liger_kernel,
        "quantization": [
            model_config.load_in_4bit,
            model_config.load_in_8bit,
            model_config.bnb_4bit_quant_type,
            model_config.use_bnb_nested_quant,
            *lora.UNQUANTIZED * (model_config.load_in_4bit or model_config.load_in_8bit),
        ],
        "versions": {name: version(name) for name in ("torch", "transformers", "trl")},
    }
