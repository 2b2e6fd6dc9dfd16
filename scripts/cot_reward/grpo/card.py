"""The model card of GRPO, README.md: what a model was trained from, how, and with what result."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trl import ModelConfig

from cot_reward.grpo.questions import Questions
from cot_reward.grpo.settings import GrpoSettings
from cot_reward.grpo.steps import Steps
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
    "rewards/judged/mean": "reward of the judge",
    "rewards/well_formed/mean": "well-formed texts",
    "frac_reward_zero_std": "questions whose texts have one reward (they teach nothing)",
    "completions/mean_length": "tokens of a text",
    "completions/clipped_ratio": "texts that were cut",
    "entropy": "entropy of a token",
    "kl": "KL divergence from the base",
    "eval_rewards/judged/mean": "reward of the judge, held out",
}


@dataclass(frozen=True)
class FinishedRun:
    """What only the run itself knows: its length, its log, and how it was started."""

    steps: int
    planned: Steps
    seconds: float
    processes: int
    history: Sequence[Mapping[str, Any]]
    argv: Sequence[str]


def model_card(
    settings: GrpoSettings,
    training: Any,
    model_config: ModelConfig,
    train: Questions,
    run: FinishedRun,
) -> str:
    """The text of the card."""
    name, revision = str(model_config.model_name_or_path), model_config.model_revision
    is_adapter = model_config.use_peft and not settings.merge_adapter
    output = str(training.output_dir)
    base = base_lines(name, revision, "Base")
    sections = [
        f"# {code(Path(output).name)}",
        "A multimodal reward model that writes a chain of thought before its answer. Stage 3 by "
        "group relative policy optimization (GRPO): the model was sampled while it trained, and a "
        "text that is right and coherent had reward 1.",
        "## Trained from",
        "\n".join([*base, *_data_lines(settings, train)]),
        "## Settings",
        table(("setting", "value"), _setting_rows(settings, training, model_config, run)),
        "## Result",
        f"{run.steps} of {run.planned.total} steps in {run.seconds:.0f} s. The metrics of training "
        "are means over the texts of a logged interval, which are about other questions each time; "
        "how often the model judges well is measured on held-out comparisons.",
        table(("metric", "first logged", "last logged"), metric_rows(run.history, _METRICS)),
        "## Command",
        block(masked_command(run.argv)),
        "## Versions",
        versions_line(),
        "## Use",
        usage(output, is_adapter),
    ]
    head = header(name, revision, is_adapter, "grpo")
    return f"---\n{head}\n---\n\n" + "\n\n".join(sections) + "\n"


def _data_lines(settings: GrpoSettings, train: Questions) -> list[str]:
    skipped = f" ({len(train.problems)} bad rows were left out)" if train.problems else ""
    lines = [f"- Questions: {len(train.rows)}{skipped}, orders: {code(settings.orders)}"]
    lines += [f"- Data: {code(file)}, sha256 {code(sha256(file))}" for file in settings.data_path]
    lines += [
        f"- Held out: {code(file)}, sha256 {code(sha256(file))}" for file in settings.eval_data_path
    ]
    return lines


def _setting_rows(
    settings: GrpoSettings, training: Any, model_config: ModelConfig, run: FinishedRun
) -> list[tuple[str, str]]:
    mixed = "bf16" if training.bf16 else "fp16" if training.fp16 else "none"
    values: dict[str, Any] = {
        "loss": training.loss_type,
        "reward": (
            f"right and coherent 1, right otherwise {settings.reward_incoherent:g}, well-formed "
            f"+{settings.reward_format:g}; scaled by {training.scale_rewards}"
        ),
        "beta": training.beta,
        "learning rate": training.learning_rate,
        "schedule": f"{plain(training.lr_scheduler_type)}, warm-up {training.warmup_steps:g}",
        "texts": f"{run.planned.at_once} questions at once x {run.planned.texts} texts of each",
        "sampling": (
            f"temperature {training.temperature:g}, top_p {training.top_p:g}, at most "
            f"{training.max_completion_length} tokens, "
            + (f"vLLM ({training.vllm_mode})" if training.use_vllm else "transformers")
        ),
        "texts a step": (
            f"{training.train_batch_size} x {training.gradient_accumulation_steps} accumulated "
            f"x {run.processes} processes"
        ),
        "epochs": training.num_train_epochs,
        "weights": f"{model_config.dtype or 'as saved'}, mixed precision {mixed}",
        "seed": training.seed,
        "image_max_pixels": settings.image_max_pixels,
        "vision tower": "frozen" if settings.freeze_vision_tower else "trained",
        "projector": "frozen" if settings.freeze_multi_modal_projector else "trained",
    }
    if training.max_steps > 0:
        values["epochs"] = f"max_steps {training.max_steps}"
    if settings.max_minutes is not None:
        values["time"] = f"at most {settings.max_minutes:g} minutes"
    if model_config.use_peft:
        values["LoRA"] = f"r {model_config.lora_r}, alpha {model_config.lora_alpha}"
    return [(name, code(short(value))) for name, value in values.items()]
