"""Rows of our own form, for any task: convert data to them when no adapter reads the data."""

from collections.abc import Mapping
from typing import Any

from cot_reward.media.paths import media_path
from cot_reward.records import Candidate, Comparison, Task, as_tuple
from cot_reward.rows.labels import FileLabels
from cot_reward.tasks import TASKS

_CONTEXT = {
    "image_editing": "source image",
    "image_understanding": "images that the question is about",
    "video_understanding": "frames of the video that the question is about",
}


def recognises(row: Mapping[str, Any]) -> bool:
    return {"text", "candidates", "label"} <= row.keys()


def adapt(row: dict[str, Any], prefix: str, labels: FileLabels | None = None) -> Comparison:
    """A row's keys are `task` (or --task), `text` (caption, instruction or question), `candidates`
    (two images, two videos as lists of frames, or two answer texts), `label` (1 or 2), and for
    edits and questions `context` (the source image; the media or frames that a question is about).
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
        raise ValueError(f"'text' must be the {task.text_field}, a string")
    if bool(context) != task.has_context:
        raise ValueError(
            f"'context' must name the {_CONTEXT[task.name]}"
            if task.has_context
            else f"task {task.name} has no 'context'"
        )
    if task.compares_media and len(context) > 1:
        raise ValueError(f"'context' has {len(context)} entries; an edit has one source image")
    if task.compares_media:
        first, second = (_medium(candidate, task, prefix) for candidate in candidates)
        if len(as_tuple(first)) != len(as_tuple(second)):
            raise ValueError(
                f"'candidates' have {len(as_tuple(first))} and {len(as_tuple(second))} frames; a "
                "model tells two videos apart by as many frames of each"
            )
    elif not all(isinstance(answer, str) and answer.strip() for answer in candidates):
        raise ValueError("'candidates' must be two answers, strings that are not empty")
    else:
        first, second = candidates
    return Comparison(
        task.name, row["text"], (first, second), label,
        context=tuple(media_path(path, prefix) for path in context),
    )  # fmt: skip


def plain_row(comparison: Comparison) -> dict[str, Any]:
    """The row that `adapt` reads as this comparison; its paths are relative to the media root."""
    row = {
        "task": comparison.task, "text": comparison.text,
        "candidates": [list(c) if isinstance(c, tuple) else c for c in comparison.candidates],
        "label": comparison.label,
    }  # fmt: skip
    return row | ({"context": list(comparison.context)} if comparison.context else {})


def _medium(candidate: Any, task: Task, prefix: str) -> Candidate:
    """A candidate that is shown: the path of an image, or the paths of a video's frames."""
    if task.medium == "image":
        return media_path(candidate, prefix)
    if not isinstance(candidate, list) or len(candidate) < 2:
        raise ValueError(
            f"'candidates' must be two lists of two or more frames, not {candidate!r:.60}: "
            "scripts/prepare_data.py convert makes frames of videos"
        )
    return tuple(media_path(path, prefix) for path in candidate)
