"""The model card of stage 3, README.md: what a model was trained from, how, and with what result.

TRL's own draft says nothing of the base, the data or the result, and its example is for a text
model. Everything that comes from files or flags stands in code spans, code blocks or YAML, so that
no such text can become part of the card's markup.
"""

import math
import re
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import file_digest
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCardData, try_to_load_from_cache
from trl import ModelConfig

from cot_reward.dpo.settings import DpoSettings
from cot_reward.dpo.trl_settings import PairConfig
from cot_reward.plotting import series
from cot_reward.provenance import versions
from cot_reward.store import read_json

MASK = "***"
_SECRET_NAME = r"[\w.-]*(?:key|token|secret|password)[\w.-]*"
# Logged metrics of the card's table -> their names there.
_METRICS = {
    "rewards/accuracies": "reward accuracy",
    "rewards/margins": "reward margin",
    "loss": "loss",
    "eval_rewards/accuracies": "reward accuracy, held out",
    "eval_rewards/margins": "reward margin, held out",
    "eval_loss": "loss, held out",
}
# Of the all_results.json that transformers' Trainer leaves, and of our summary.json.
_BASE_KEYS = ("stage", "steps", "epoch", "train_loss", "train_runtime", "seconds")
# Bounds the way through cards that name each other.
_MAX_ANCESTORS = 10
_LICENSE_KEYS = ("license", "license_name", "license_link")


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
    name = str(model_config.model_name_or_path)
    is_adapter = model_config.use_peft and not settings.merge_adapter
    output = str(training.output_dir)
    sections = [
        f"# {code(Path(output).name)}",
        "A multimodal reward model that writes a chain of thought before its answer. Stage 3 of "
        "three: direct preference optimization (DPO) on pairs of chains of thought.",
        "## Trained from",
        "\n".join([*_base_lines(name, model_config.model_revision), *_data_lines(settings, run)]),
        "## Settings",
        _table(("setting", "value"), _setting_rows(settings, training, model_config, run)),
        "## Result",
        f"{run.steps} steps in {run.seconds:.0f} s. The metrics of training are means over the "
        "pairs of a logged interval. Before the first update all rewards are 0 but for rounding, "
        "so the reward accuracy of the first step says nothing. Reward accuracy compares two given "
        "texts; how often the model judges well is measured by its own answers, on held-out "
        "comparisons.",
        _table(("metric", "first logged", "last logged"), _metric_rows(run.history)),
        "## Command",
        block(masked_command(run.argv)),
        "## Versions",
        ", ".join(f"{package} {found}" for package, found in _versions().items()) + ".",
        "## Use",
        _usage(output, is_adapter),
    ]
    header = _header(name, model_config.model_revision, is_adapter)
    return f"---\n{header}\n---\n\n" + "\n\n".join(sections) + "\n"


def _header(name: str, revision: str | None, is_adapter: bool) -> str:
    """The YAML that the Hub reads. A folder is no model of the Hub, so its own base is named."""
    base_model, license_keys = _hub_base_and_license(name, revision)
    data = ModelCardData(
        base_model=base_model,
        pipeline_tag="image-text-to-text",
        library_name="peft" if is_adapter else "transformers",
        tags=["trl", "dpo", "reward-model", *["lora"] * is_adapter],
        **license_keys,
    )
    return str(data.to_yaml()).strip()


def _hub_base_and_license(name: str, revision: str | None) -> tuple[str | None, dict[str, Any]]:
    """The nearest model of the Hub that the base comes from, and the nearest license named.

    The cards of local folders lead from one to the next; either may be unknown.
    """
    license_keys: dict[str, Any] = {}
    for _ in range(_MAX_ANCESTORS):
        header = _card_header(name, revision)
        found = {key: str(header[key]) for key in _LICENSE_KEYS if header.get(key)}
        # LLaMA-Factory writes "other" whatever the license is.
        if not license_keys and "license" in found and found != {"license": "other"}:
            license_keys = found
        if not Path(name).is_dir():
            return (name if _is_hub_name(name) else None), license_keys
        parent = header.get("base_model")
        if not isinstance(parent, str) or not parent:
            break
        name, revision = parent, None
    return None, license_keys


def _is_hub_name(name: str) -> bool:
    return bool(re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name))


def _base_lines(name: str, revision: str | None) -> list[str]:
    where = f" at revision {code(revision)}" if revision and revision != "main" else ""
    lines = [f"- Base, and reference of DPO: {code(name)}{where}"]
    for file in ("summary.json", "all_results.json"):
        found = read_json(Path(name) / file)
        facts = [
            f"{key} {code(_short(found[key]))}"
            for key in _BASE_KEYS
            if isinstance(found.get(key), str | int | float)
        ]
        if facts:
            return [*lines, f"- {code(file)} of the base: {', '.join(facts)}"]
    base_model = _card_header(name, revision).get("base_model")
    if isinstance(base_model, str):
        lines.append(f"- The card of the base names its own base: {code(base_model)}")
    return lines


def _data_lines(settings: DpoSettings, run: FinishedRun) -> list[str]:
    skipped = f" ({run.skipped} bad rows were left out)" if run.skipped else ""
    lines = [
        f"- Data: {code(settings.data_path)}, {run.pairs} pairs{skipped}, "
        f"sha256 {code(_sha256(settings.data_path))}"
    ]
    kinds = read_json(Path(settings.data_path).parent / "summary.json").get("pair_kinds")
    if isinstance(kinds, dict) and kinds:
        counts = ", ".join(f"{code(kind)} {code(_short(count))}" for kind, count in kinds.items())
        lines.append(f"- Kinds of pairs, by the summary beside the data: {counts}")
    if settings.eval_data_path:
        held_out = settings.eval_data_path
        lines.append(f"- Held out: {code(held_out)}, sha256 {code(_sha256(held_out))}")
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
        "schedule": f"{_plain(training.lr_scheduler_type)}, warm-up {training.warmup_steps:g}",
        "pairs a step": (
            f"{training.train_batch_size} x {training.gradient_accumulation_steps} accumulated "
            f"x {run.processes} processes"
        ),
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
    return [(name, code(_short(value))) for name, value in values.items()]


def _metric_rows(history: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    rows = []
    for key, title in _METRICS.items():
        steps, values = series(history, key)
        if steps:
            ends = [f"{values[end]:.4g} (step {steps[end]:g})" for end in (0, -1)]
            rows.append((title, *ends))
    return rows


def _usage(output: str, is_adapter: bool) -> str:
    if is_adapter:
        return (
            "The folder holds a LoRA adapter. To serve it, train with `--merge_adapter true`, or "
            "merge it into its base with PEFT's `merge_and_unload`."
        )
    commands = [
        f"scripts/serve.sh {shlex.quote(output)}",
        "python scripts/image_stream_gpt.py --data TEST.json --image-root FOLDER \\",
        "    --template TEMPLATE.txt --temperature 0 --num-samples 1 --out OUT",
    ]
    return (
        "Serve the folder, then ask it about comparisons, with the prompt template of its "
        "training:\n\n" + block("\n".join(commands)) + "\n\nEach row of OUT/*.jsonl has the chain "
        "of thought and its answer, 1 or 2. Ask in both orders, and trust an answer that survives "
        "the swap."
    )


def code(text: str) -> str:
    """The text as one code span, on one line: no text can end it."""
    flat = " ".join(str(text).split())
    ticks = "`" * (1 + max(map(len, re.findall("`+", flat)), default=0))
    # A space keeps backticks at the ends apart from the fence; Markdown removes it.
    space = " " if len(ticks) > 1 or not flat else ""
    return f"{ticks}{space}{flat}{space}{ticks}"


def block(text: str) -> str:
    """The text as a code block whose fence is longer than any run of backticks in it."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}bash\n{text}\n{fence}"


def masked_command(argv: Sequence[str]) -> str:
    """The command line with *** for the values of flags and keys that name a secret.

    A name with key, token, secret or password in it counts, as does a password in a URL.
    """
    words: list[str] = []
    masks_next = False
    for word in argv:
        if masks_next and not word.startswith("-"):
            words.append(MASK)
        else:
            words.append(_masked_word(word))
        masks_next = bool(re.fullmatch(rf"--?{_SECRET_NAME}", word, re.IGNORECASE))
    return shlex.join(words)


def _masked_word(word: str) -> str:
    if flag := re.fullmatch(rf"(--?{_SECRET_NAME}=).*", word, re.IGNORECASE | re.DOTALL):
        return flag[1] + MASK
    # A key in JSON ("api_key": "...") or in a list of options (api_key=...,).
    pattern = rf"""(["']?{_SECRET_NAME}["']?\s*[:=]\s*)("[^"]*"|'[^']*'|[^\s,;}}&]+)"""
    masked = re.sub(pattern, rf"\g<1>{MASK}", word, flags=re.IGNORECASE)
    return re.sub(r"(://)[^/@\s]+@", rf"\g<1>{MASK}@", masked)


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    # Within a table a bar ends a cell, also in a code span.
    escaped = [[cell.replace("|", "\\|") for cell in cells] for cells in lines]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in escaped)


def _versions() -> dict[str, str]:
    return versions("trl", "transformers", "torch", "peft")


def _card_header(name: str, revision: str | None) -> dict[str, Any]:
    """The YAML head of the base's own card, from its folder or the local cache of the Hub."""
    path: Any = Path(name) / "README.md"
    if not Path(name).is_dir():
        with suppress(ValueError):
            path = try_to_load_from_cache(name, "README.md", revision=revision)
    try:
        text = Path(path).read_text(encoding="utf-8")
        header = re.match(r"---\r?\n(.*?)\r?\n---", text, re.DOTALL)
        found = yaml.safe_load(header[1]) if header else None
    except (OSError, TypeError, ValueError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def _sha256(path: str) -> str:
    with open(path, "rb") as file:
        return file_digest(file, "sha256").hexdigest()


def _plain(value: Any) -> Any:
    """An enumeration's value; anything else as it is."""
    return getattr(value, "value", value)


def _short(value: Any) -> str:
    """A value for one line; long floats are rounded."""
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.6g}"
    return str(value)[:200]
