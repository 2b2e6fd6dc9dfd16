"""Stage 3 itself: build TRL's trainer, train, save, and write the summary last."""

import dataclasses
import json
import platform
import re
import shlex
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import AutoProcessor, ProcessorMixin
from transformers.trainer_utils import get_last_checkpoint
from trl import DPOTrainer, ModelConfig, get_peft_config, get_quantization_config

from cot_reward.curves import plot_history
from cot_reward.dpo.arguments import PairConfig, ScriptArguments
from cot_reward.dpo.collator import PairCollator
from cot_reward.settings import UserError
from cot_reward.store import write_whole

CURVES = {
    "loss": "loss",
    "rewards/chosen": "reward of the chosen",
    "rewards/rejected": "reward of the rejected",
    "rewards/accuracies": "share of pairs whose chosen has the higher reward",
    "rewards/margins": "reward of the chosen less that of the rejected",
}
# Names in Qwen2-VL, Qwen2.5-VL and Qwen3-VL, then in LLaVA; LLaMA-Factory freezes the same parts.
_PROJECTOR = r"(.*\.)?(visual\.(deepstack_)?merger\w*|multi_modal_projector)(\..*)?"
_TOWER = r"(.*\.)?(visual\.(?!merger|deepstack_merger)|vision_tower\.).*"
_PACKAGES = ("trl", "transformers", "torch", "accelerate", "peft", "datasets")


def build_trainer(
    script: ScriptArguments,
    training: PairConfig,
    model: ModelConfig,
    train_rows: Dataset,
    eval_rows: Dataset | None = None,
) -> DPOTrainer:
    """TRL's trainer with model, reference, processor and the rows of `data.load`."""
    name = str(model.model_name_or_path)
    given = training.model_init_kwargs
    training.model_init_kwargs = {
        "revision": model.model_revision,
        "trust_remote_code": training.trust_remote_code,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
    } | (given if isinstance(given, dict) else {})
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
    frozen = [_TOWER] * script.freeze_vision_tower
    frozen += [_PROJECTOR] * script.freeze_multi_modal_projector
    peft_config: Any = get_peft_config(model)
    if peft_config is not None:
        # As LLaMA-Factory: every linear layer, save those of frozen parts.
        peft_config.target_modules = peft_config.target_modules or "all-linear"
        peft_config.exclude_modules = "|".join(frozen) or None
    trainer = DPOTrainer(
        model=name,
        args=training,
        data_collator=PairCollator(
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
    trainer: DPOTrainer, script: ScriptArguments, training: PairConfig, model: ModelConfig
) -> None:
    """Train, then write into `output_dir`: model and processor, state, curves, summary.json."""
    output = Path(str(training.output_dir))
    main = trainer.is_world_process_zero()
    if main:
        # Its presence says that the run is complete, so an earlier run's must not stay.
        (output / "summary.json").unlink(missing_ok=True)
    started = time.monotonic()
    before = _steps_done(training)
    try:
        result = trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
    except ValueError as error:
        if "No valid checkpoint" not in str(error):
            raise
        raise UserError(
            f"--resume_from_checkpoint true: there is no checkpoint in {output}; leave the flag out"
        ) from None
    # The trainer turned the cache off; who generates with the saved model wants it.
    config: Any = trainer.accelerator.unwrap_model(trainer.model).config
    config.use_cache = True
    # Gathers the weights on every rank, and writes on one.
    trainer.save_model(training.output_dir)
    trainer.save_state()
    if not main:
        return
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
        "rows": {"in": rows, "out": rows, "skipped": {}},
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


def _steps_done(training: PairConfig) -> int:
    """Optimizer steps that the checkpoint to resume from already has; 0 for a fresh run."""
    start = training.resume_from_checkpoint
    path = get_last_checkpoint(training.output_dir) if start is True else start
    state = Path(path or "", "trainer_state.json")
    return json.loads(state.read_text())["global_step"] if path and state.is_file() else 0


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
