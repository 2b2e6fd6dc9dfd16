"""Flags of GRPO that exclude each other, or that would be lost without a word.

They are checked before anything is read or loaded. TRL checks some of them after the model is
loaded or in the first step, and others not at all.
"""

from collections.abc import Iterator
from dataclasses import fields
from importlib.util import find_spec
from typing import Any

from trl import GRPOConfig, ModelConfig

from cot_reward.errors import UserError, nearest
from cot_reward.grpo.settings import GrpoSettings
from cot_reward.training.flag_checks import (
    of_attention,
    of_evaluation,
    of_lengths,
    of_machine,
    of_model,
)

# Flag -> its values; TRL looks at them in the first step.
_WORDS = {
    "loss_type": ("grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo"),
    "scale_rewards": ("group", "batch", "none"),
    "importance_sampling_level": ("token", "sequence"),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
}
# Flags of TRL and transformers that have no effect here, and what to do instead.
_LOST = {
    "reward_weights": "the weights follow from --reward_incoherent and --reward_format",
    "remove_unused_columns": "the judge needs the columns; leave it out",
    "use_transformers_continuous_batching": "it is for text models; use --use_vllm",
    "use_transformers_paged": "it is for text models; use --use_vllm",
    "label_smoothing_factor": "GRPO has no labels to smooth; leave it out",
    "neftune_noise_alpha": "texts would be sampled and scored with noise; leave it out",
}
_SERVER_FLAGS = (
    "vllm_server_base_url",
    "vllm_server_host",
    "vllm_server_port",
    "vllm_server_timeout",
    "vllm_group_port",
)
_COLOCATE_FLAGS = (
    "vllm_gpu_memory_utilization",
    "vllm_max_model_length",
    "vllm_tensor_parallel_size",
    "vllm_enable_sleep_mode",
    "vllm_model_impl",
)
_VLLM_MODES = ("server", "colocate")


def check(settings: GrpoSettings, training: Any, model_config: ModelConfig) -> None:
    """Raise UserError for the first fault that the flags have; `training` is a GRPOConfig."""
    for faults in (
        _of_words(training),
        _of_numbers(training),
        _of_lost_flags(training),
        of_lengths(training),
        of_evaluation(settings, training),
        _of_reference(training, model_config),
        _of_vllm(training, model_config),
        of_model(settings, training, model_config),
        of_attention(training, model_config),
        of_machine(training),
    ):
        for fault in faults:
            raise UserError(fault)


def _of_words(training: Any) -> Iterator[str]:
    for name, known in _WORDS.items():
        value = getattr(training, name)
        if value not in known:
            close = nearest(str(value), known)
            yield f"--{name} {value}: not one of {', '.join(known)}.{close}"


def _of_numbers(training: Any) -> Iterator[str]:
    if training.max_completion_length is None or training.max_completion_length < 1:
        yield (
            f"--max_completion_length {training.max_completion_length}: must be at least 1; a "
            "sampled text without a bound may never end"
        )
    if training.temperature <= 0:
        yield (
            f"--temperature {training.temperature}: must be above 0; equal texts have equal "
            "rewards, and teach nothing"
        )
    if not 0 < training.top_p <= 1:
        yield f"--top_p {training.top_p}: must be above 0 and at most 1"
    if training.beta < 0:
        yield f"--beta {training.beta}: must not be below 0, or the model would leave its reference"
    if training.num_iterations < 1:
        yield f"--num_iterations {training.num_iterations}: must be at least 1"


def _of_lost_flags(training: Any) -> Iterator[str]:
    for name, instead in _LOST.items():
        if value := getattr(training, name):
            yield f"--{name} {value} has no effect here: {instead}"


def _of_reference(training: Any, model_config: ModelConfig) -> Iterator[str]:
    if training.sync_ref_model and not training.beta:
        yield "--sync_ref_model needs a --beta above 0: without it there is no reference"
    if training.sync_ref_model and model_config.use_peft:
        yield "--sync_ref_model does not go with --use_peft: there is no reference model to change"
    for name in ("ref_model_mixup_alpha", "ref_model_sync_steps"):
        if not training.sync_ref_model and _is_changed(training, name):
            yield f"--{name} {getattr(training, name)} is ignored without --sync_ref_model"


def _of_vllm(training: Any, model_config: ModelConfig) -> Iterator[str]:
    mode = training.vllm_mode
    if mode not in _VLLM_MODES:
        close = nearest(mode, _VLLM_MODES)
        yield f"--vllm_mode {mode}: not one of {', '.join(_VLLM_MODES)}.{close}"
    if not training.use_vllm:
        for name in (*_SERVER_FLAGS, *_COLOCATE_FLAGS):
            if _is_changed(training, name):
                yield f"--{name} {getattr(training, name)} is ignored without --use_vllm"
        return
    other, their_mode = (
        (_COLOCATE_FLAGS, "colocate") if mode == "server" else (_SERVER_FLAGS, "server")
    )
    for name in other:
        if _is_changed(training, name):
            yield (
                f"--{name} {getattr(training, name)} is ignored with --vllm_mode {mode}; it is for "
                f"--vllm_mode {their_mode}"
            )
    for name in ("load_in_4bit", "load_in_8bit"):
        if getattr(model_config, name):
            # TRL merges the adapter into the quantized weights and sends these.
            yield (
                f"--{name} does not go with --use_vllm: vLLM would be sent quantized weights with "
                "the adapter rounded; leave one of the two out"
            )
    if training.use_cpu:
        yield "--use_vllm needs a GPU: TRL sends the weights to vLLM from one; leave --use_cpu out"
    if find_spec("vllm") is None:
        yield (
            "--use_vllm needs the package vllm beside TRL, also where the server runs elsewhere; "
            "make .envs/grpo/pins builds an environment with both: run this by its accelerate"
        )


def _is_changed(training: Any, name: str) -> bool:
    default = next(member.default for member in fields(GRPOConfig) if member.name == name)
    return bool(getattr(training, name) != default)
