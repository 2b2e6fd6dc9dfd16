"""The model card of stage 3, README.md: what a model was trained from, how, and with what result.

TRL's own draft says nothing of the base, the data or the result, and its example is for a text
model. Everything that comes from files or flags stands in code spans, code blocks or YAML, so that
no such text can become part of the card's markup.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trl import ModelConfig

from cot_reward.dpo.settings import DpoSettings
from cot_reward.dpo.trl_settings import PairConfig
from cot_reward.store import read_json
from cot_reward.training.card_parts import (
    base_lines,
    block,
    code,
    header,
    masked_command,
    metric_rows,
    plain,
    sha256,
    short,
    table,
    usage,
    versions_line,
)

# Logged metrics of the card's table -> their names there.
_METRICS = {
    "rewards/accuracies": "reward accuracy",
    "rewards/margins": "reward margin",
    "answer_rewards/margins": "reward margin of the answer's tokens",
    "answer_logps/chosen": "log-prob per token, chosen answer",
    "reasoning_logps/chosen": "log-prob per token, chosen reasoning",
    "agreement/coherent": "own texts, coherent",
    "agreement/answers_1": "own texts, answers 1",
    "loss": "loss",
    "eval_rewards/accuracies": "reward accuracy, held out",
    "eval_rewards/margins": "reward margin, held out",
    "eval_loss": "loss, held out",
}


@dataclass(frozen=True)
class FinishedRun:
    """What only the run itself knows: its length, its log, and how it was started."""

    pairs: int
    skipped: int
    steps: int
    seconds: float
    processes: int
    history: Sequence[Mapping[str, Any]]
    argv: Sequence[str]


def model_card(
    settings: DpoSettings, training: PairConfig, model_config: ModelConfig, run: FinishedRun
) -> str:
    """The text of the card."""
    name, revision = str(model_config.model_name_or_path), model_config.model_revision
    is_adapter = model_config.use_peft and not settings.merge_adapter
    output = str(training.output_dir)
    base = base_lines(name, revision, "Base, and reference of DPO")
    sections = [
        f"# {code(Path(output).name)}",
        "A multimodal reward model that writes a chain of thought before its answer. Stage 3 of "
        "three: direct preference optimization (DPO) on pairs of chains of thought.",
        "## Trained from",
        "\n".join([*base, *_data_lines(settings, run)]),
        "## Settings",
        table(("setting", "value"), _setting_rows(settings, training, model_config, run)),
        "## Result",
        f"{run.steps} steps in {run.seconds:.0f} s. The metrics of training are means over the "
        "pairs of a logged interval. Before the first update all rewards are 0 but for rounding, "
        "so the reward accuracy of the first step says nothing. Reward accuracy compares two given "
        "texts; how often the model judges well is measured by its own answers, on held-out "
        "comparisons.",
        table(("metric", "first logged", "last logged"), metric_rows(run.history, _METRICS)),
        "## Command",
        block(masked_command(run.argv)),
        "## Versions",
        versions_line(),
        "## Use",
        usage(output, is_adapter),
    ]
    head = header(name, revision, is_adapter, "dpo")
    return f"---\n{head}\n---\n\n" + "\n\n".join(sections) + "\n"


def _data_lines(settings: DpoSettings, run: FinishedRun) -> list[str]:
    skipped = f" ({run.skipped} bad rows were left out)" if run.skipped else ""
    lines = [
        f"- Data: {code(settings.data_path)}, {run.pairs} pairs{skipped}, "
        f"sha256 {code(sha256(settings.data_path))}"
    ]
    kinds = read_json(Path(settings.data_path).parent / "summary.json").get("pair_kinds")
    if isinstance(kinds, dict) and kinds:
        counts = ", ".join(f"{code(kind)} {code(short(count))}" for kind, count in kinds.items())
        lines.append(f"- Kinds of pairs, by the summary beside the data: {counts}")
    if settings.eval_data_path:
        held_out = settings.eval_data_path
        lines.append(f"- Held out: {code(held_out)}, sha256 {code(sha256(held_out))}")
    return lines


def _setting_rows(
    settings: DpoSettings, training: PairConfig, model_config: ModelConfig, run: FinishedRun
) -> list[tuple[str, str]]:
    weights = training.loss_weights or [1.0] * len(training.loss_type)
    loss = " + ".join(
        f"{weight:g} x {kind}" for kind, weight in zip(training.loss_type, weights, strict=True)
    )
    mixed = "bf16" if training.bf16 else "fp16" if training.fp16 else "none"
    values: dict[str, Any] = {
        "loss": loss,
        "beta": training.beta,
        "learning rate": training.learning_rate,
        "schedule": f"{plain(training.lr_scheduler_type)}, warm-up {training.warmup_steps:g}",
        f"{'groups' if settings.groups else 'pairs'} a step": (
            f"{training.train_batch_size} x {training.gradient_accumulation_steps} accumulated "
            f"x {run.processes} processes"
        ),
        "weighs the same": f"every {settings.weigh}",
        "compared tokens": settings.preference_tokens,
        "epochs": training.num_train_epochs,
        "weights": f"{model_config.dtype or 'as saved'}, mixed precision {mixed}",
        "seed": training.seed,
        "image_max_pixels": settings.image_max_pixels,
        "max_length": training.max_length or "none: nothing is cut",
        "vision tower": "frozen" if settings.freeze_vision_tower else "trained",
        "projector": "frozen" if settings.freeze_multi_modal_projector else "trained",
    }
    if training.max_steps > 0:
        values["epochs"] = f"max_steps {training.max_steps}"
    if model_config.use_peft:
        values["LoRA"] = f"r {model_config.lora_r}, alpha {model_config.lora_alpha}"
    return [(name, code(short(value))) for name, value in values.items()]
