"""Flags of stage 3 that exclude each other, or that would be lost without a word.

They are checked before anything is read or loaded. TRL checks some of them, after the model is
loaded or in the first step, and others not at all.
"""

from collections.abc import Callable, Iterator
from dataclasses import fields
from importlib.util import find_spec
from typing import Any

import torch
from transformers.integrations.integration_utils import (
    INTEGRATION_TO_CALLBACK,
    get_available_reporting_integrations,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import (
    is_flash_attn_2_available,
    is_flash_attn_3_available,
    is_liger_kernel_available,
)
from trl import DPOConfig, ModelConfig

from cot_reward.dpo.settings import DpoSettings
from cot_reward.errors import UserError, nearest

LOSSES = (
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot",
    "aot_unpaired", "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
)  # fmt: skip
_SMOOTHED = ("robust", "exo_pair", "aot", "aot_unpaired")
# Their terms are sorted, or one mean for all pairs: no pair has a term that could be weighted.
_NOT_WEIGHTED = ("aot", "aot_unpaired", "sft")
_DIVERGENCES = ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence")
_WITH_DIVERGENCES = (
    "sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft",
)  # fmt: skip
_FLASH: dict[str, Callable[[], bool]] = {
    "flash_attention_2": is_flash_attn_2_available,
    "flash_attention_3": is_flash_attn_3_available,
}
# Flags of TRL and transformers that nothing here reads, and what to do instead.
_LOST = {
    "pad_to_multiple_of": "batches of pairs are not padded so; leave it out",
    "pad_token": "the model's own is used; change it in the model's tokenizer",
    "padding_free": "TRL has it switched off; leave it out",
    "label_smoothing_factor": "DPO has --label_smoothing",
    "neftune_noise_alpha": "chosen and rejected would be scored with different noise; leave it out",
}


def check(settings: DpoSettings, training: Any, model_config: ModelConfig) -> None:
    """Raise UserError for the first fault that the flags have; `training` is a DPOConfig."""
    given = training.model_init_kwargs
    attention = (given if isinstance(given, dict) else {}).get(
        "attn_implementation", model_config.attn_implementation
    )
    for faults in (
        _of_losses(training),
        _of_lost_flags(training),
        _of_lengths(training),
        _of_evaluation(settings, training),
        _of_reference(settings, training, model_config),
        _of_model(settings, training, model_config),
        _of_attention(attention),
        _of_machine(training, model_config),
    ):
        for fault in faults:
            raise UserError(fault)


def _of_losses(training: Any) -> Iterator[str]:
    losses = training.loss_type
    for name in losses:
        if name not in LOSSES:
            close = nearest(name, LOSSES)
            yield f"--loss_type {name}: no such loss.{close} The losses: {', '.join(LOSSES)}"
    smoothing = training.label_smoothing
    smoothed = [name for name in losses if name in _SMOOTHED]
    if smoothing and not smoothed:
        yield (
            f"--label_smoothing {smoothing} is for the losses {', '.join(_SMOOTHED)}; "
            f"{', '.join(losses)} would ignore it"
        )
    if smoothed and not 0 <= smoothing < 0.5:
        yield f"--label_smoothing {smoothing}: must be at least 0 and below 0.5"
    if "exo_pair" in losses and not smoothing:
        yield "--loss_type exo_pair needs a --label_smoothing above 0, such as 0.001"
    if training.beta <= 0:
        yield f"--beta {training.beta}: must be above 0, or the rejected text would be preferred"
    unweighted = [name for name in losses if name in _NOT_WEIGHTED]
    if training.use_weighting and unweighted:
        yield f"--use_weighting weights single pairs; {unweighted[0]} has no term of a single pair"
    kind = training.f_divergence_type
    if kind not in _DIVERGENCES:
        close = nearest(kind, _DIVERGENCES)
        yield f"--f_divergence_type {kind}: not one of {', '.join(_DIVERGENCES)}.{close}"
    without = [name for name in losses if name not in _WITH_DIVERGENCES]
    if kind != "reverse_kl" and without:
        yield f"--f_divergence_type {kind} does not go with the loss {without[0]}"
    if training.ld_alpha is not None and not 0 <= training.ld_alpha <= 1:
        yield f"--ld_alpha {training.ld_alpha}: must be between 0 and 1"
    for name, needed, there in (
        ("discopop_tau", "--loss_type discopop", "discopop" in losses),
        ("f_alpha_divergence_coef", "--f_divergence_type alpha_divergence", "alpha" in kind),
        ("ref_model_mixup_alpha", "--sync_ref_model", training.sync_ref_model),
        ("ref_model_sync_steps", "--sync_ref_model", training.sync_ref_model),
    ):
        if not there and getattr(training, name) != _default(name):
            yield f"--{name} {getattr(training, name)} is ignored without {needed}"


def _of_lost_flags(training: Any) -> Iterator[str]:
    for name, instead in _LOST.items():
        if value := getattr(training, name):
            yield f"--{name} {value} has no effect here: {instead}"
    if training.truncation_mode != "keep_start":
        yield (
            f"--truncation_mode {training.truncation_mode} has no effect here: no text is cut; a "
            "row longer than --max_length is a bad row"
        )
    if training.train_sampling_strategy not in ("random", "sequential"):
        yield (
            f"--train_sampling_strategy {training.train_sampling_strategy} needs lengths that rows "
            "with images do not have; use random or sequential"
        )


def _of_lengths(training: Any) -> Iterator[str]:
    for name in (
        "per_device_train_batch_size",
        "per_device_eval_batch_size",
        "gradient_accumulation_steps",
    ):
        if getattr(training, name) < 1:
            yield f"--{name} {getattr(training, name)}: must be at least 1"
    if training.max_steps == 0 or (training.max_steps < 0 and training.num_train_epochs <= 0):
        yield (
            f"--max_steps {training.max_steps} with --num_train_epochs "
            f"{training.num_train_epochs:g}: nothing would be trained"
        )
    if training.learning_rate < 0:
        yield f"--learning_rate {training.learning_rate}: must not be below 0"


def _of_evaluation(settings: DpoSettings, training: Any) -> Iterator[str]:
    evaluating = {
        f"--eval_strategy {training.eval_strategy.value}": training.eval_strategy != "no",
        "--load_best_model_at_end": training.load_best_model_at_end,
        "--save_strategy best": training.save_strategy == "best",
        "--eval_on_start": training.eval_on_start,
    }
    for flag, is_set in evaluating.items():
        if is_set and not settings.eval_data_path:
            yield f"{flag} needs --eval_data_path"
    if training.load_best_model_at_end and training.save_strategy == "no":
        yield "--load_best_model_at_end needs saved checkpoints: --save_strategy is no"
    resumes = str(training.resume_from_checkpoint or "").lower() not in ("", "false", "none")
    if resumes and settings.overwrite_output_dir:
        yield "--overwrite_output_dir would remove what --resume_from_checkpoint goes on with"


def _of_reference(settings: DpoSettings, training: Any, model_config: ModelConfig) -> Iterator[str]:
    if training.precompute_ref_log_probs:
        yield (
            "--precompute_ref_log_probs of TRL does not work with images; --reference_cache does "
            "it, and is on by default"
        )
    if training.sync_ref_model and settings.reference_cache:
        yield (
            "--sync_ref_model changes the reference during training; it needs "
            "--reference_cache false"
        )
    if training.sync_ref_model and model_config.use_peft:
        yield "--sync_ref_model does not go with --use_peft: there is no reference model to change"


def _of_model(settings: DpoSettings, training: Any, model_config: ModelConfig) -> Iterator[str]:
    if settings.merge_adapter and not model_config.use_peft:
        yield "--merge_adapter needs --use_peft: without LoRA there is no adapter"
    if "token" in (training.model_init_kwargs or {}):
        yield (
            "model_init_kwargs: summary.json would show the token; give it by the environment, as "
            "HF_TOKEN"
        )
    if "quantization_config" in (training.model_init_kwargs or {}):
        yield "model_init_kwargs: quantization_config is not read here; use --load_in_4bit true"
    for name in ("load_in_4bit", "load_in_8bit"):
        if not getattr(model_config, name):
            continue
        if not model_config.use_peft:
            yield f"--{name} needs --use_peft: quantized weights cannot be trained themselves"
        if find_spec("bitsandbytes") is None:
            yield f"--{name} needs the package bitsandbytes: make qlora installs it"
        if training.use_cpu or not torch.accelerator.is_available():
            # bitsandbytes runs quantized models on the CPU, but cannot train behind such a run.
            yield (
                f"--{name} needs a GPU, and this process has none (nvidia-smi and "
                "CUDA_VISIBLE_DEVICES tell which it may see)"
            )


def _of_attention(name: str | None) -> Iterator[str]:
    """Attention that is not there; a name with a slash is a kernel of the Hub."""
    if name is None or "/" in name:
        return
    known = ["eager", *ALL_ATTENTION_FUNCTIONS.valid_keys()]
    if name not in known:
        yield f"--attn_implementation {name}: not one of {', '.join(known)}.{nearest(name, known)}"
    if name in _FLASH and not _FLASH[name]():
        yield (
            f"--attn_implementation {name} needs the package flash-attn and a GPU; use sdpa, or "
            "leave the flag out"
        )


def _of_machine(training: Any, model_config: ModelConfig) -> Iterator[str]:
    if training.use_liger_kernel and not is_liger_kernel_available():
        yield "--use_liger_kernel needs the package liger-kernel, which is not installed"
    if (training.liger_kernel_config or {}).get("fused_linear_cross_entropy"):
        yield "--liger_kernel_config: fused_linear_cross_entropy does not go with DPO's own head"
    available = get_available_reporting_integrations()
    for name in training.report_to:
        if name not in INTEGRATION_TO_CALLBACK:
            close = nearest(name, INTEGRATION_TO_CALLBACK)
            yield f"--report_to {name}: nothing of this name can be reported to.{close}"
        if name not in available:
            yield f"--report_to {name} needs the package {name}, which is not installed"
    if training.n_gpu > 1:
        yield (
            f"{training.n_gpu} GPUs and one process: start it by accelerate launch (or torchrun), "
            "or show it one GPU with CUDA_VISIBLE_DEVICES=0"
        )


def _default(name: str) -> Any:
    return next(member.default for member in fields(DPOConfig) if member.name == name)
