"""Flags of TRL's trainers that cannot be meant, whatever the method; a sentence for each."""

from collections.abc import Callable, Iterator
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
from trl import ModelConfig

from cot_reward.errors import nearest

_FLASH: dict[str, Callable[[], bool]] = {
    "flash_attention_2": is_flash_attn_2_available,
    "flash_attention_3": is_flash_attn_3_available,
}


def of_lengths(training: Any) -> Iterator[str]:
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


def of_evaluation(settings: Any, training: Any) -> Iterator[str]:
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


def of_model(settings: Any, training: Any, model_config: ModelConfig) -> Iterator[str]:
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


def of_attention(training: Any, model_config: ModelConfig) -> Iterator[str]:
    """Attention that is not there; a name with a slash is a kernel of the Hub."""
    given = training.model_init_kwargs
    name = (given if isinstance(given, dict) else {}).get(
        "attn_implementation", model_config.attn_implementation
    )
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


def of_machine(training: Any) -> Iterator[str]:
    if training.use_liger_kernel and not is_liger_kernel_available():
        yield "--use_liger_kernel needs the package liger-kernel, which is not installed"
    if (training.liger_kernel_config or {}).get("fused_linear_cross_entropy"):
        yield "--liger_kernel_config: fused_linear_cross_entropy does not go with TRL's own head"
    available = get_available_reporting_integrations()
    for name in training.report_to:
        if name not in INTEGRATION_TO_CALLBACK:
            close = nearest(name, INTEGRATION_TO_CALLBACK)
            yield f"--report_to {name}: nothing of this name can be reported to.{close}"
        if name not in available:
            yield f"--report_to {name} needs the package {name}, which is not installed"
    if training.save_on_each_node:
        yield (
            "--save_on_each_node: machines that share --output_dir would write over each other's "
            "files, and others are not needed: the first one saves the model; leave it out"
        )
    if training.n_gpu > 1:
        yield (
            f"{training.n_gpu} GPUs and one process: start it by accelerate launch (or torchrun), "
            "or show it one GPU with CUDA_VISIBLE_DEVICES=0"
        )
