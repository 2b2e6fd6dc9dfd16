"""Prompts: templates filled with comparisons, and the media that belong to a prompt."""

import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from itertools import chain
from pathlib import Path

from cot_reward.errors import UserError, nearest
from cot_reward.records import (
    PLACEHOLDERS,
    Candidate,
    Comparison,
    Form,
    Order,
    Task,
    as_tuple,
    token_fault,
)
from cot_reward.tasks import TASKS

# The token that stands for one medium in a prompt: an image, or a frame of a video.
IMAGE = PLACEHOLDERS["images"]


def fill(template: str, values: dict[str, str]) -> str:
    """The template with each `{field}` of `values` replaced, in one pass.

    Braces in a value, and braces around anything else than a field, stay as they are.
    """
    pattern = "|".join(re.escape("{" + name + "}") for name in values)
    return re.sub(pattern, lambda found: values[found[0][1:-1]], template) if values else template


def shown_media(comparison: Comparison, order: Order) -> tuple[str, ...]:
    """The media that the model sees, in their order: the context, then media candidates."""
    candidates = comparison.presented(order)[0] if TASKS[comparison.task].compares_media else ()
    return (*comparison.context, *chain.from_iterable(map(as_tuple, candidates)))


def render(comparison: Comparison, order: Order, template: str) -> str:
    """The prompt as it is written to rows, with one placeholder for each medium.

    A template without placeholders gets them in front. It may hold them itself, if stage 1 had them
    in other places.
    Raises ValueError when their number is not that of the media.
    """
    task = TASKS[comparison.task]
    count = len(shown_media(comparison, order))
    check_media_count(template, count)
    if IMAGE not in template:
        template = IMAGE * count + template
    texts: tuple[Candidate, ...] = () if task.compares_media else comparison.presented(order)[0]
    values = (comparison.text, *map(str, texts))
    return fill(template, dict(zip(task.fields, values, strict=True)))


def check_template(template: str, task: Task) -> None:
    """Raises ValueError when the template lacks a field of the task, or holds a special token."""
    if fault := token_fault(template.replace(IMAGE, "")):
        raise ValueError(f"the template {fault}")
    missing = [name for name in task.fields if "{" + name + "}" not in template]
    if missing:
        raise ValueError(
            f"the template has no {{{missing[0]}}}; task {task.name} needs "
            + ", ".join("{" + name + "}" for name in task.fields)
        )


def check_media_count(template: str, count: int) -> None:
    """Raises ValueError when the template holds placeholders, but not one for each of the media."""
    placeholders = template.count(IMAGE)
    if placeholders not in (0, count):
        raise ValueError(f"the template has {placeholders} {IMAGE}, but {count} are shown")


# The prompt that a model was trained on, beside its weights.
TEMPLATE_FILE = "template.txt"


def template_hash(template: str) -> str:
    """The identity of a template's exact text: 16 hexadecimal digits (of its sha256)."""
    return hashlib.sha256(template.encode()).hexdigest()[:16]


def read_templates(files: Sequence[str], form: Form = "think") -> dict[str, str]:
    """task -> template: our own of a form, unless a file replaces it.

    `files` are TASK=FILE for one task, or FILE for every task that has no file of its own. Raises
    UserError.
    """
    named, general = named_templates(files)
    found = {name: task.templates[form] for name, task in TASKS.items()}
    if general:
        found = dict.fromkeys(TASKS, _read_template(general))
    return found | {name: _read_template(path) for name, path in named.items()}


def named_templates(files: Sequence[str]) -> tuple[dict[str, Path], Path | None]:
    """task -> file, and the file of the other tasks, of what --template names.

    Raises UserError for two files of one task, and for a name that is no task's.
    """
    named: dict[str, Path] = {}
    general: Path | None = None
    for text in files:
        name, equals, path = text.partition("=")
        # A path may hold an equals sign.
        if not equals or (name not in TASKS and ("/" in name or Path(text).exists())):
            name, path = "", text
        elif name not in TASKS:
            raise UserError(f"--template {text}: no task is called '{name}'.{nearest(name, TASKS)}")
        if name in named or (not name and general):
            raise UserError(f"--template {text}: {name or 'all tasks'} already has a file")
        if name:
            named[name] = Path(path)
        else:
            general = Path(path)
    return named, general


def _read_template(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").rstrip("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--template {path}: cannot be read: {error}") from None


def check_template_of_model(root: str | None, templates: Mapping[str, str]) -> None:
    """Raises UserError when the model's folder says that it was trained on another prompt.

    `templates` is task -> template. The prompt in the folder says nothing of a task with other
    fields or another medium: a model may have been trained on one task only.
    """
    if root is None:
        return
    path = Path(root) / TEMPLATE_FILE
    try:
        trained = path.read_text(encoding="utf-8").rstrip("\n")
    except (OSError, UnicodeDecodeError):
        return
    for name, template in templates.items():
        if _is_about(trained, TASKS[name]) and template != trained:
            raise UserError(
                f"the model in {root} was trained on another prompt for {name} than this run's; "
                f"use --template {path} (or --template {name}={path}, beside files of other tasks)"
            )


def _is_about(template: str, task: Task) -> bool:
    """Whether a template may be one of the task: it has its fields, and speaks of its medium."""
    if not all("{" + name + "}" in template for name in task.fields):
        return False
    words = template.replace(IMAGE, "").lower()
    # Prompts about videos may call the frames images.
    medium = "video" if "video" in words else "image" if "image" in words else task.medium
    return medium == task.medium


def mixed_templates(hashes: Mapping[str, Collection[str]]) -> str:
    """A warning when a task has several templates (`hashes`: task -> template hashes), else ""."""
    mixed = [
        f"{task}: {', '.join(sorted(set(found)))}"
        for task, found in hashes.items()
        if len(found) > 1
    ]
    if not mixed:
        return ""
    return (
        "warning: the texts answer differently worded prompts (template hashes by task: "
        f"{'; '.join(mixed)}); a model should be trained on the one that it was sampled with"
    )
