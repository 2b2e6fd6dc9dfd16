"""Flags of stage 3 that exclude each other, or that would be lost without a word.

They are checked before anything is read or loaded. TRL checks some of them, after the model is
loaded or in the first step, and others not at all.
"""

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from trl import DPOConfig, ModelConfig

from cot_reward.dpo.groups import WEIGHTS
from cot_reward.dpo.preference_tokens import CHOICES
from cot_reward.dpo.settings import DpoSettings
from cot_reward.errors import UserError, nearest
from cot_reward.training.flag_checks import (
    of_attention,
    of_evaluation,
    of_lengths,
    of_machine,
    of_model,
)
from cot_reward.training.model import is_fsdp

LOSSES = (
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot",
    "aot_unpaired", "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
)  # fmt: skip
_SMOOTHED = ("robust", "exo_pair", "aot", "aot_unpaired")
# Their terms are sorted, or one mean for all pairs: no pair has a term that could be weighted.
_SORTED = ("aot", "aot_unpaired")
_NOT_WEIGHTED = (*_SORTED, "sft")
_BY_LENGTH = ("ipo", "sigmoid_norm")
_DIVERGENCES = ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence")
_WITH_DIVERGENCES = (
    "sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft",
)  # fmt: skip
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
    for faults in (
        _of_losses(training),
        _of_preference_tokens(settings, training),
        _of_groups(settings, training),
        _of_lost_flags(training),
        of_lengths(training),
        of_evaluation(settings, training),
        _of_reference(settings, training, model_config),
        of_model(settings, training, model_config),
        _of_agreement(settings, training),
        of_attention(training, model_config),
        of_machine(training),
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


def _of_preference_tokens(settings: DpoSettings, training: Any) -> Iterator[str]:
    tokens = settings.preference_tokens
    if tokens not in CHOICES:
        close = nearest(tokens, CHOICES)
        yield f"--preference_tokens {tokens}: not one of {', '.join(CHOICES)}.{close}"
    if tokens == "all":
        return
    losses = training.loss_type
    if all(name == "sft" for name in losses):
        yield f"--preference_tokens {tokens} has no effect on the loss sft, which has all tokens"
    for name in losses:
        if name in _BY_LENGTH:
            yield (
                f"--preference_tokens {tokens} does not go with the loss {name}, which divides "
                "log-probs by the length of the whole texts"
            )
    if training.use_weighting:
        yield (
            f"--preference_tokens {tokens} does not go with --use_weighting, which weights a pair "
            "by the log-probs of its whole texts"
        )


def _of_groups(settings: DpoSettings, training: Any) -> Iterator[str]:
    weigh = settings.weigh
    if weigh not in WEIGHTS:
        yield f"--weigh {weigh}: not one of {', '.join(WEIGHTS)}.{nearest(weigh, WEIGHTS)}"
    for name in training.loss_type:
        if weigh == "comparison" and name in _SORTED:
            yield f"--weigh {weigh} does not go with the loss {name}, which has no term of a pair"
    if settings.max_row_tokens is None:
        return
    if not settings.groups:
        yield f"--max_row_tokens {settings.max_row_tokens} is ignored without --groups true"
    if settings.max_row_tokens < 1:
        yield f"--max_row_tokens {settings.max_row_tokens}: must be at least 1"


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


def _of_agreement(settings: DpoSettings, training: Any) -> Iterator[str]:
    if settings.agreement_steps < 0:
        yield f"--agreement_steps {settings.agreement_steps}: must be at least 0 (0: never)"
    if settings.agreement_rows < 1:
        yield f"--agreement_rows {settings.agreement_rows}: must be at least 1"
    if not settings.agreement_steps:
        return
    plugin = training.deepspeed_plugin
    is_zero3 = plugin is not None and plugin.zero_stage == 3
    if is_zero3 or is_fsdp(training):
        yield (
            f"--agreement_steps {settings.agreement_steps}: no process has the whole model under "
            f"{'DeepSpeed ZeRO-3' if is_zero3 else 'FSDP'}, so that none can write texts; leave it "
            "out, and compare the trained model by scripts/check_model.py"
        )


def _default(name: str) -> Any:
    return next(member.default for member in fields(DPOConfig) if member.name == name)
