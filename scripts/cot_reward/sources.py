"""Adapters: a raw row of some data set -> Comparison. A new data set is one function here."""

import posixpath
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cot_reward.errors import UserError
from cot_reward.records import Comparison, turns
from cot_reward.tasks import TASKS

Adapter = Callable[[dict[str, Any], str], Comparison]


class EscapeError(ValueError):
    """A media path that leaves its root; `reason` is what failed.jsonl says of it."""

    reason = "escapes"


def prefix_of(image_root: Path, media_root: Path) -> str:
    """What turns a path below the image root into one below the media root ("" when the same).

    Raises UserError when the image root is not inside the media root.
    """
    try:
        prefix = image_root.resolve().relative_to(media_root.resolve()).as_posix()
    except ValueError:
        raise UserError(
            f"--image-root {image_root} is not inside --media-root {media_root}; "
            "move or link the images below the media root"
        ) from None
    return "" if prefix == "." else prefix


def media_path(path: Any, prefix: str) -> str:
    """A path below the image root as one below the media root; ValueError if it leads out."""
    if not isinstance(path, str) or not path:
        raise ValueError(f"a media path must be a string, not {path!r:.60}")
    path = posixpath.normpath(path)
    if path == "." or "\0" in path:
        raise ValueError(f"the path {path!r:.60} names no file")
    if path.startswith(("/", "../")) or path == "..":
        raise EscapeError(f"the path {path!r} leads out of the image root")
    return posixpath.normpath(posixpath.join(prefix, path))


def upstream_pairwise(row: dict[str, Any], prefix: str) -> Comparison:
    """Rows as UnifiedReward publishes them: `prompt`, two `images`, and the label in the gpt turn.

    The human turn there is a direct-answer prompt and is not used.
    """
    images = row.get("images")
    if not isinstance(images, list) or len(images) != 2:
        raise ValueError("'images' must be a list of two paths")
    caption = row.get("prompt")
    if not isinstance(caption, str):
        raise ValueError("'prompt' must be the caption, a string")
    _, preference = turns(row)
    labels = {
        "Image 1 is better than Image 2.": 1,
        "Image 2 is better than Image 1.": 2,
    }
    if preference.strip() not in labels:
        raise ValueError(f"the label {preference[:60]!r} is neither of {list(labels)}")
    first, second = (media_path(path, prefix) for path in images)
    label = labels[preference.strip()]
    return Comparison("image_generation", caption, (first, second), label)


def plain_comparison(row: dict[str, Any], prefix: str) -> Comparison:
    """Rows of our own, for any task: what other data are converted to when no adapter reads them.

    `task` (or --task), `text` (caption or question), `candidates` (two media paths or two answer
    texts), `label` (1 or 2), and for questions `context` (the media that they are about).
    """
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
        task.name, row["text"], (first, second), row["label"],
        context=tuple(media_path(path, prefix) for path in context),
    )  # fmt: skip


def _is_plain(row: dict[str, Any]) -> bool:
    return {"text", "candidates", "label"} <= row.keys()


def _is_upstream(row: dict[str, Any]) -> bool:
    return {"prompt", "images", "conversations"} <= row.keys()


# name -> (does this row look like one?, adapter)
ADAPTERS: dict[str, tuple[Callable[[dict[str, Any]], bool], Adapter]] = {
    "upstream": (_is_upstream, upstream_pairwise),
    "comparison": (_is_plain, plain_comparison),
}


def adapter_for(row: dict[str, Any], source: str | None) -> Adapter:
    """The named adapter, or the one that recognises the row. Raises UserError for neither."""
    if source is not None:
        if source not in ADAPTERS:
            raise UserError(f"unknown --source '{source}'; known: {', '.join(ADAPTERS)}")
        return ADAPTERS[source][1]
    for recognises, adapter in ADAPTERS.values():
        if recognises(row):
            return adapter
    raise UserError(
        f"no adapter knows rows with the keys {sorted(row)}; name "
        f"one with --source ({', '.join(ADAPTERS)}) or add one in scripts/cot_reward/sources.py"
    )
