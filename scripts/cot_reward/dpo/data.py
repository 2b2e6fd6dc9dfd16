"""DPO rows: read, check, and turn into TRL's conversational form."""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from datasets import Dataset

from cot_reward import media
from cot_reward.records import PAIR_FIELDS
from cot_reward.settings import UserError
from cot_reward.tasks import mixed_templates

PLACEHOLDER = "<image>"
# The processor would take these, wherever they stand, for further images.
_RESERVED = ("<|image_pad|>", "<|video_pad|>")
_SHOWN = 10


def load(path: str, image_folder: str) -> Dataset:
    """The pairs of a JSONL file or JSON list, checked, as rows for TRL.

    Columns: `prompt`, `chosen`, `rejected` (messages), `images` (paths below `image_folder`; no
    picture is opened here). Raises UserError with the number of bad rows and the first ten.
    """
    folder = Path(image_folder)
    if not folder.is_dir():
        raise UserError(f"--image_folder {folder}: no such folder")
    rows: list[dict[str, Any]] = []
    problems: list[str] = []
    total = 0
    for where, row in _read(Path(path)):
        total += 1
        problem = row if isinstance(row, str) else find_problem(row, folder)
        if problem:
            problems.append(f"{where}: {problem}")
        else:
            rows.append(conversational(row))
    if problems:
        shown = "".join(f"\n  {problem}" for problem in problems[:_SHOWN])
        more = f"\n  and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise UserError(f"{path}: {len(problems)} of {total} rows cannot be used:{shown}{more}")
    if not rows:
        raise UserError(f"{path}: there are no rows")
    return Dataset.from_list(rows)


def template_warning(*paths: str | None) -> str:
    """A warning when the merger's summaries beside these files name several templates; else ""."""
    hashes: dict[str, set[str]] = defaultdict(set)
    for path in filter(None, paths):
        beside = Path(path).parent / "summary.json"
        with suppress(OSError, ValueError, LookupError, AttributeError):
            for task, of in json.loads(beside.read_text("utf-8"))["template_hashes"].items():
                hashes[task].update(of)
    return mixed_templates(hashes)


def _read(path: Path) -> Iterator[tuple[str, Any]]:
    """Each row with its place ("line 7"); a line that is no JSON object comes as its problem."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    if text.lstrip().startswith("["):
        try:
            rows = json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}: is not JSON: {error}") from None
        for number, row in enumerate(rows, 1):
            yield f"row {number}", row if isinstance(row, dict) else "is not a JSON object"
        return
    # Only "\n" ends a row: JSON strings may hold the other characters at which splitlines() cuts.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            row = f"is not JSON: {error}"
        yield f"line {number}", row if isinstance(row, dict | str) else "is not a JSON object"


def find_problem(row: Mapping[str, Any], folder: Path) -> str:
    """What keeps a row from being trained on, or "". Images are looked for, not opened."""
    for name in ("problem", "chosen", "rejected", "images"):
        if name not in row:
            return f"has no '{name}'"
        if not isinstance(row[name], PAIR_FIELDS[name]):
            return f"'{name}' is {row[name]!r}, not of type {PAIR_FIELDS[name].__name__}"
    problem, chosen, rejected = row["problem"], row["chosen"], row["rejected"]
    for name in ("problem", "chosen", "rejected"):
        if not row[name].replace(PLACEHOLDER, "").strip():
            return f"'{name}' is empty"
        for token in _RESERVED:
            if token in row[name]:
                return f"'{name}' holds {token}, which only the processor may write"
    if chosen == rejected:
        return "'chosen' and 'rejected' are the same text"
    if row.get("videos") or "<video>" in problem:
        return "has videos; stage 3 trains on images only"
    images = row["images"]
    if problem.count(PLACEHOLDER) != len(images):
        return (
            f"has {problem.count(PLACEHOLDER)} {PLACEHOLDER} in 'problem' and {len(images)} images"
        )
    if not images:
        return "has no images"
    for image in images:
        if not isinstance(image, str):
            return f"the image path {image!r} is not a string"
        try:
            media.resolve(image, folder)
        except media.MediaError as error:
            # Its own message names the client's flag for the root.
            missing = error.reason == "missing"
            return f"{image}: no such file below {folder}" if missing else str(error)
    return ""


def conversational(row: Mapping[str, Any]) -> dict[str, Any]:
    """A DPO row as TRL's conversational preference row.

    The prompt stands once: its text, with an image part for each placeholder, in place. Each
    completion holds only the assistant's text. `images` stay paths.
    """
    content: list[dict[str, str]] = []
    for number, text in enumerate(row["problem"].split(PLACEHOLDER)):
        if number:
            content.append({"type": "image"})
        if text:
            content.append({"type": "text", "text": text})
    return {
        "prompt": [{"role": "user", "content": content}],
        "chosen": [{"role": "assistant", "content": row["chosen"]}],
        "rejected": [{"role": "assistant", "content": row["rejected"]}],
        "images": list(row["images"]),
    }
