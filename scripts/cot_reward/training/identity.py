"""What a run is made from, so that none goes on with, or replaces, the result of another one.

`run.json` has it: in the output folder from the first step on, and in every checkpoint.
"""

import dataclasses
import json
import re
import shutil
from collections.abc import Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from trl import ModelConfig

from cot_reward.errors import UserError
from cot_reward.store import write_json
from cot_reward.training.checkpoint import RECORD_FILE, checkpoints, read_record, step_of

Record = dict[str, Any]

# Settings that change neither what is learnt nor in which order. Paths are among them, because
# the record has what the files hold. All other settings must be the same.
_HARMLESS = re.compile(
    "activation_.*|adapter|agreement_.*|attn_implementation|batch_eval_metrics|bf16_full_eval|"
    "data_path|"
    "dataloader_(?!drop_last).*|dataset_num_proc|ddp_.*|debug|deepspeed|disable_tqdm|do_.*|"
    "ds3_gather_.*|"
    "enable_jit_checkpoint|eval_.*|fp16_full_eval|fsdp.*|full_determinism|gradient_checkpointing.*|"
    "greater_is_better|hub_.*|image_folder|include_.*|label_names|length_column_name|"
    "image_root|labels|limit|load_best_model_at_end|local_rank|log_.*|logging_.*|max_length|"
    "max_minutes|merge_adapter|metric_for_best_model|min_parsed|model_name_or_path|"
    "model_revision|num_completions_to_print|num_generations_eval|orders|output_dir|"
    "overwrite_output_dir|pad_token|per_device_eval_batch_size|precompute_.*|prediction_loss_only|"
    "project|push_to_hub|reference_cache.*|remove_unused_columns|report_to|restore_callback_.*|"
    "resume_from_checkpoint|run_name|save_.*|shared_prefix|skip_bad_rows|skip_memory_metrics|"
    "task|template|torch_compile.*|torch_empty_cache_steps|trackio_.*|trust_remote_code|use_cache|"
    "use_cpu|vllm_enable_sleep_mode|vllm_gpu_.*|vllm_group_port|vllm_max_.*|vllm_server_.*|"
    "vllm_tensor_.*"
)
# They may change in a resumed run, which makes it longer.
_LENGTHS = ("num_train_epochs", "max_steps")
# What a finished or stopped run leaves in its output folder, besides checkpoints and the card.
_RESULTS = (
    "summary.json",
    "*.safetensors",
    "*.bin",
    "*.index.json",
    "adapter_config.json",
    "adapter",
)
_DIGEST_SHOWN = 12


def describe(
    settings: Any,
    training: Any,
    model_config: ModelConfig,
    *,
    row_digests: Iterable[str],
    model: str,
    engine: str,
) -> Record:
    """What this run is made from: rows with their pictures, model, processes and settings.

    `row_digests` are the rows' digests in the order of the file, `model` tells the model's files.
    """
    every_setting = {
        **dataclasses.asdict(settings),
        **dataclasses.asdict(model_config),
        **training.to_dict(),
    }
    kept = {key: value for key, value in every_setting.items() if not _HARMLESS.fullmatch(key)}
    record = {
        "data (sha256)": sha256("\n".join(row_digests).encode()).hexdigest(),
        "model": model,
        "engine": engine or "none",
        "processes": training.world_size,
        **kept,
    }
    # As it will be read again: lists for tuples, text for what JSON does not know.
    read: Record = json.loads(json.dumps(record, default=str))
    return read


def check(
    record: Record, output: Path, resumed: str | None, overwrite: bool, total_steps: int
) -> str:
    """Raise UserError when the run would go on with, or replace, what another run left.

    `resumed` is the checkpoint, `total_steps` the last step of this run. Returns a line for the
    user, or "".
    """
    if resumed is None or Path(resumed).resolve().parent != output.resolve():
        _check_replaced(record, output, overwrite)
    return "" if resumed is None else _check_resumed(record, Path(resumed), total_steps)


def _check_resumed(record: Record, checkpoint: Path, total_steps: int) -> str:
    before, step = read_record(checkpoint), step_of(checkpoint)
    if not before:
        raise UserError(
            f"--resume_from_checkpoint {checkpoint}: has no {RECORD_FILE}, so what it was trained "
            "from is unknown; start anew in another --output_dir"
        )
    changed = _differences(before, record)
    if refused := [text for name, text in changed.items() if name not in _LENGTHS]:
        raise UserError(
            f"--resume_from_checkpoint {checkpoint}: belongs to a run with other settings: "
            f"{'; '.join(refused)}. Give the settings of that run, or start anew in another "
            "--output_dir"
        )
    if not changed:
        return ""
    lengths = "; ".join(changed.values())
    if step >= total_steps:
        raise UserError(
            f"--resume_from_checkpoint {checkpoint}: is at step {step}, and this run would end at "
            f"step {total_steps} ({lengths}): nothing is left to train"
        )
    return (
        f"resumed at step {step} of {total_steps} with another length ({lengths}); the learning "
        "rate follows the new one"
    )


def _check_replaced(record: Record, output: Path, overwrite: bool) -> None:
    found = _results(output)
    if overwrite or not found:
        return
    before = read_record(output)
    changed = _differences(before, record)
    if before and not changed:
        return
    which = "; ".join(changed.values()) or f"it has no {RECORD_FILE}, so what it is from is unknown"
    raise UserError(
        f"--output_dir {output}: has the result of another run ({found[0].name}; {which}). Choose "
        "another folder, or remove that result with --overwrite_output_dir true"
    )


def claim(record: Record, output: Path, overwrite: bool) -> None:
    """Note in the output folder what the run is made from; `overwrite` removes what is there."""
    if overwrite:
        for path in _results(output):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
    # The summary says that a run is complete, so an earlier run's summary must go.
    (output / "summary.json").unlink(missing_ok=True)
    write_json(output / RECORD_FILE, {"record": record})


def _results(output: Path) -> list[Path]:
    found = [path for pattern in _RESULTS for path in sorted(output.glob(pattern))]
    return found + checkpoints(output)


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """Name of a setting -> its name and both values, for the settings that differ.

    A setting that only one of the two knows is one of another version, and is not compared.
    """
    return {
        name: f"{name} is {_shown(before[name])} there and {_shown(now[name])} here"
        for name in now
        if name in before and before[name] != now[name]
    }


def _shown(value: Any) -> str:
    text = str(value)
    is_digest = re.fullmatch("[0-9a-f]{40,}", text)
    return text[:_DIGEST_SHOWN] + "..." if is_digest else text
