"""Parts of the model cards: what a card tells of base, metrics, command and use, as safe Markdown.

Everything that comes from files or flags stands in code spans, code blocks or YAML, so that no such
text can become part of a card's markup.
"""

import math
import re
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from hashlib import file_digest
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCardData, try_to_load_from_cache

from cot_reward.plotting import series
from cot_reward.provenance import versions
from cot_reward.store import read_json

MASK = "***"
_SECRET_NAME = r"[\w.-]*(?:key|token|secret|password)[\w.-]*"
# Of the all_results.json that transformers' Trainer leaves, and of our summary.json.
_BASE_KEYS = ("stage", "steps", "epoch", "train_loss", "train_runtime", "seconds")
# Bounds the way through cards that name each other.
_MAX_ANCESTORS = 10
_LICENSE_KEYS = ("license", "license_name", "license_link")


def header(name: str, revision: str | None, is_adapter: bool, method: str) -> str:
    """The YAML that the Hub reads. A folder is no model of the Hub, so its own base is named.

    `method` is a tag, as in "dpo".
    """
    base_model, license_keys = _hub_base_and_license(name, revision)
    data = ModelCardData(
        base_model=base_model,
        pipeline_tag="image-text-to-text",
        library_name="peft" if is_adapter else "transformers",
        tags=["trl", method, "reward-model", *["lora"] * is_adapter],
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


def base_lines(name: str, revision: str | None, role: str) -> list[str]:
    """What the base is, and what its own files say of it. `role` is its name in the list."""
    where = f" at revision {code(revision)}" if revision and revision != "main" else ""
    lines = [f"- {role}: {code(name)}{where}"]
    for file in ("summary.json", "all_results.json"):
        found = read_json(Path(name) / file)
        facts = [
            f"{key} {code(short(found[key]))}"
            for key in _BASE_KEYS
            if isinstance(found.get(key), str | int | float)
        ]
        if facts:
            return [*lines, f"- {code(file)} of the base: {', '.join(facts)}"]
    base_model = _card_header(name, revision).get("base_model")
    if isinstance(base_model, str):
        lines.append(f"- The card of the base names its own base: {code(base_model)}")
    return lines


def metric_rows(
    history: Sequence[Mapping[str, Any]], metrics: Mapping[str, str]
) -> list[tuple[str, ...]]:
    """First and last logged value of each metric; `metrics`: key of the log -> name."""
    rows = []
    for key, title in metrics.items():
        steps, values = series(history, key)
        if steps:
            ends = [f"{values[end]:.4g} (step {steps[end]:g})" for end in (0, -1)]
            rows.append((title, *ends))
    return rows


def usage(output: str, is_adapter: bool) -> str:
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


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    # Within a table a bar ends a cell, also in a code span.
    escaped = [[cell.replace("|", "\\|") for cell in cells] for cells in lines]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in escaped)


def versions_line() -> str:
    found = versions("trl", "transformers", "torch", "peft")
    return ", ".join(f"{package} {number}" for package, number in found.items()) + "."


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


def sha256(path: str) -> str:
    with open(path, "rb") as file:
        return file_digest(file, "sha256").hexdigest()


def plain(value: Any) -> Any:
    """An enumeration's value; anything else as it is."""
    return getattr(value, "value", value)


def short(value: Any) -> str:
    """A value for one line; long floats are rounded."""
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.6g}"
    return str(value)[:200]
