"""Stage 3 itself: build the trainer, train, save, and write the summary last."""

import dataclasses
import json
import os
import platform
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from transformers import AutoConfig, AutoProcessor, PretrainedConfig, ProcessorMixin
from transformers.integrations import deepspeed as hf_deepspeed
from trl import ModelConfig, get_peft_config, get_quantization_config
from trl.trainer.utils import create_model_from_path

from cot_reward.curves import plot_history
from cot_reward.dpo import data, shared_prefix
from cot_reward.dpo.arguments import PairConfig, ScriptArguments
from cot_reward.dpo.collator import PairCollator, SharedPrefixCollator, text_of
from cot_reward.dpo.reference import Cache, model_digest
from cot_reward.dpo.trainer import PairTrainer
from cot_reward.settings import UserError
from cot_reward.store import write_whole

T = TypeVar("T")

CURVES = {
    "loss": "loss",
    "rewards/chosen": "reward of the chosen",
    "rewards/rejected": "reward of the rejected",
    "rewards/accuracies": "share of pairs whose chosen has the higher reward",
    "rewards/accuracies_answer_1": "that share where the chosen answer is 1",
    "rewards/accuracies_answer_2": "that share where the chosen answer is 2",
    "rewards/margins": "reward of the chosen less that of the rejected",
}
# Names in Qwen2-VL, Qwen2.5-VL and Qwen3-VL, then in LLaVA; LLaMA-Factory freezes the same parts.
_PROJECTOR = r"(.*\.)?(visual\.(deepstack_)?merger\w*|multi_modal_projector)(\..*)?"
_TOWER = r"(.*\.)?(visual\.(?!merger|deepstack_merger)|vision_tower\.).*"
_PACKAGES = ("trl", "transformers", "torch", "accelerate", "peft", "datasets")
# Raised when reference log-probs come to depend on something that their key does not hold.
_REFERENCE_FORMAT = 1


def read_rows(
    script: ScriptArguments, training: PairConfig, model: ModelConfig
) -> tuple[data.Pairs, data.Pairs | None]:
    """The rows to train on and those to evaluate on, checked by one process for all."""

    @cache
    def processor() -> Any:
        return load_processor(training, model)

    def count(row: dict[str, Any], sizes: list[tuple[int, int]]) -> int:
        # A picture is here a mark without content: only the placeholders are counted.
        text = text_of(row | {"images": [None] * len(sizes)}, processor())
        if not hasattr(processor(), "_get_num_multimodal_tokens"):
            raise UserError("--max_length: this processor does not tell how long images are")
        patches = processor()._get_num_multimodal_tokens(
            image_sizes=[(height, width) for width, height in sizes]
        )
        prompt, *responses = (
            len(processor().tokenizer(text[part], add_special_tokens=False)["input_ids"])
            for part in ("prompt", "chosen", "rejected")
        )
        # The template writes one token for each image, the processor as many as it has.
        return sum(patches.num_image_tokens) - len(sizes) + prompt + max(responses)

    def read(path: str) -> data.Pairs:
        return data.load(
            path,
            script.image_folder,
            max_pixels=script.image_max_pixels,
            max_length=training.max_length,
            count_tokens=count,
            skip_bad_rows=script.skip_bad_rows,
        )

    def both() -> tuple[data.Pairs, data.Pairs | None]:
        train = read(script.data_path)
        held_out = read(script.eval_data_path) if script.eval_data_path else None
        for pairs, path in ((train, script.data_path), (held_out, script.eval_data_path)):
            if pairs and pairs.problems:
                print(f"{path}: goes on without {len(pairs.problems)} bad rows", file=sys.stderr)
        if warning := data.template_warning(script.data_path, script.eval_data_path):
            print(warning, file=sys.stderr)
        return train, held_out

    return _by_main(both)


def load_processor(training: PairConfig, model: ModelConfig) -> Any:
    """The model's processor. Raises UserError when there is none."""
    name = str(model.model_name_or_path)
    try:
        processor = AutoProcessor.from_pretrained(
            name, revision=model.model_revision, trust_remote_code=training.trust_remote_code
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"--model_name_or_path {name}: cannot be loaded: {reason}") from None
    if not isinstance(processor, ProcessorMixin):
        raise UserError(
            f"--model_name_or_path {name}: is no vision-language model with a processor"
        )
    return processor


def build_trainer(
    script: ScriptArguments,
    training: PairConfig,
    model: ModelConfig,
    train_rows: Dataset,
    eval_rows: Dataset | None = None,
) -> PairTrainer:
    """The trainer with model, reference log-probs, processor and the rows of `data.load`."""
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
            with _whole_models():
                shared_prefix.check(config)
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


def _is_fsdp(training: PairConfig) -> bool:
    return bool(training.fsdp) or os.environ.get("ACCELERATE_USE_FSDP", "false") == "true"


@contextmanager
def _whole_models() -> Iterator[None]:
    """Models made within stand whole in one process, also under DeepSpeed ZeRO-3."""
    kept = hf_deepspeed._hf_deepspeed_config_weak_ref
    hf_deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        hf_deepspeed._hf_deepspeed_config_weak_ref = kept


def _by_main(work: Callable[[], T]) -> T:
    """What `work` gives the main process, in every process; its UserError is told once."""
    state = PartialState()
    box: list[Any] = [None]
    if state.is_main_process:
        try:
            box = [work()]
        except UserError as error:
            box = [error]
    broadcast_object_list(box)
    if isinstance(box[0], UserError):
        raise box[0] if state.is_main_process else SystemExit(2)
    result: T = box[0]
    return result


def _cache(
    script: ScriptArguments, training: PairConfig, model: ModelConfig, config: PretrainedConfig
) -> Cache:
    """The reference log-probs of this model, and all that they depend on beside the rows."""
    name = str(model.model_name_or_path)
    weights = _by_main(
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


def train(
    trainer: PairTrainer,
    script: ScriptArguments,
    training: PairConfig,
    model: ModelConfig,
    skipped: int = 0,
) -> None:
    """Train, then write into `output_dir`: model and processor, state, curves, summary.json."""
    output = Path(str(training.output_dir))
    main = trainer.is_world_process_zero()
    if main:
        # Its presence says that the run is complete, so an earlier run's must not stay.
        (output / "summary.json").unlink(missing_ok=True)
    started = time.monotonic()
    before = _steps_done(training)
    result = trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
    # The trainer turned the cache off; who generates with the saved model wants it.
    config: Any = trainer.accelerator.unwrap_model(trainer.model).config
    config.use_cache = True
    if trainer.is_fsdp_enabled:
        # Of shards transformers would write no model at all here.
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    # Gathers the weights on every rank, and writes on one.
    trainer.save_model(str(output / "adapter" if script.merge_adapter else output))
    trainer.save_state()
    if not main:
        return
    if script.merge_adapter:
        _merge(output, training, model, trainer.processing_class)
    history = trainer.state.log_history
    for key, title in CURVES.items():
        name = key.replace("/", "_") + ".png"
        title = f"{' + '.join(training.loss_type)}: {title}"
        plot_history(history, [key, f"eval_{key}"], output / "curves" / name, title)
    dataset: Any = trainer.train_dataset
    rows = len(dataset)
    steps = trainer.state.global_step
    seconds = result.metrics["train_runtime"]
    summary = {
        "stage": "dpo",
        "rows": {"in": rows + skipped, "out": rows, "skipped": {"bad": skipped} if skipped else {}},
        "reference_logps": trainer.reference_counts,
        "steps": steps,
        "seconds": round(time.monotonic() - started, 2),
        "train_seconds": round(seconds, 2),
        "seconds_per_step": round(seconds / max(steps - before, 1), 4),
        "metrics": _last_values(history),
        "settings": {
            **dataclasses.asdict(script),
            **dataclasses.asdict(model),
            **training.to_dict(),
        },
        "command": shlex.join([sys.executable, *sys.argv]),
        "versions": {"python": platform.python_version(), **_versions()},
    }
    write_whole(output / "summary.json", json.dumps(summary, indent=2, default=str) + "\n")
    print(f"{steps} steps in {seconds:.0f} s; model, curves and summary are in {output}")


def _merge(output: Path, training: PairConfig, model: ModelConfig, processor: Any) -> None:
    """Write the model with the adapter of output/adapter merged into it.

    Into weights read anew: those in training may be shared out over processes, or quantized.
    """
    from peft import PeftModel

    # Of an earlier run into this folder: it would be loaded on top of the merged weights.
    for stale in [output / "adapter_config.json", *output.glob("adapter_model.*")]:
        stale.unlink(missing_ok=True)
    settings = {**(training.model_init_kwargs or {}), "device_map": None}
    with _whole_models(), torch.no_grad():
        base = create_model_from_path(str(model.model_name_or_path), **settings)
        merged: Any = PeftModel.from_pretrained(base, str(output / "adapter")).merge_and_unload()
    merged.save_pretrained(output)
    processor.save_pretrained(output)


def _steps_done(training: PairConfig) -> int:
    """Optimizer steps that the checkpoint to resume from already has; 0 for a fresh run."""
    if not training.resume_from_checkpoint:
        return 0
    state = Path(training.resume_from_checkpoint, "trainer_state.json")
    steps: int = json.loads(state.read_text())["global_step"]
    return steps


def _last_values(history: list[dict[str, float]]) -> dict[str, float]:
    """The latest value of every key that was logged."""
    return {key: value for entry in history for key, value in entry.items()}


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
