"""Rows of our own form, for any task: convert data to them when no adapter reads the data."""

from typing import Any

from cot_reward.media.paths import media_path
from cot_reward.records import Comparison
from cot_reward.rows.labels import FileLabels
from cot_reward.tasks import TASKS


def recognises(row: dict[str, Any]) -> bool:
    return {"text", "candidates", "label"} <= row.keys()


def adapt(row: dict[str, Any], prefix: str, labels: FileLabels | None = None) -> Comparison:
    """A row's keys are `task` (or --task), `text` (caption or question), `candidates` (two media
    paths or two answer texts), `label` (1 or 2), and for questions `context` (media paths).
    """
    label = (labels or FileLabels()).preferred(row.get("label"))
    task = TASKS.get(row.get("task", ""))
    if task is None:
        raise ValueError(f"'task' is {row.get('task')!r:.60}; known: {', '.join(TASKS)}")
    candidates, context = row["candidates"], row.get("context") or []
    if not isinstance(candidates, list) or len(candidates) != 2:
        raise ValueError("'candidates' must be a list of two")
    if not isinstance(context, list):
        raise ValueError("'context' must be a list of media paths")
    if not isinstance(row.get("text"), str):
        raise ValueError("'text' must be the caption or question, a string")
    if task.compares_media:
        candidates = [media_path(path, prefix) for path in candidates]
    elif not all(isinstance(answer, str) and answer.strip() for answer in candidates):
        raise ValueError("'candidates' must be two answers, strings that are not empty")
    elif not context:
        raise ValueError(f"'context' must name the {task.medium} that the question is about")
    first, second = candidates
    return Comparison(
        task.name, row["text"], (first, second), label,
        context=tuple(media_path(path, prefix) for path in context),
    )  # fmt: skip
