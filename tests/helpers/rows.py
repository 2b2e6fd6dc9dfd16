"""Rows of every form, and files of them."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from cot_reward.records import comparison_key, conversation


def raw_row(caption: str, images: Sequence[str], label: int = 1) -> dict[str, Any]:
    """A row of raw preference data, as upstream publishes it."""
    preference = f"Image {label} is better than Image {3 - label}."
    return {
        "prompt": caption,
        "images": list(images),
        "conversations": conversation("Which image is better?", preference),
    }


def judged_row(
    text: str,
    label: int = 1,
    caption: str = "a cat",
    images: tuple[str, str] = ("a.png", "b.png"),
    order: str = "given",
    **other: Any,
) -> dict[str, Any]:
    """A judged row. `images` and `label` are as presented; the findings are left for the judge."""
    return {
        "conversations": conversation(f"<image><image>Judge: [{caption}]", text),
        "images": list(images),
        "videos": [],
        "id": comparison_key("image_generation", caption, (), images),
        "task": "image_generation",
        "source": "made",
        "order": order,
        "sample": 0,
        "label": label,
        "answer": 0,
        "verdict": "",
        "coherence": "",
        "finish_reason": "stop",
        "model": "model-a",
        "template_hash": "0" * 16,
        "form": "think",
    } | other


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read_lines(path: Path) -> list[dict[str, Any]]:
    # Not splitlines: JSON may hold other line separators than its own.
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def write_rows(path: Path, rows: list[Any]) -> Path:
    """Write lines to a .jsonl file, else a list."""
    if path.suffix == ".jsonl":
        return write_lines(path, rows)
    path.write_text(json.dumps(rows, indent=1))
    return path
