"""Prompts: a template filled with a comparison, and the media that are shown with it."""

import hashlib
import re
from collections.abc import Collection, Mapping

from cot_reward.records import Comparison, Order, Task
from cot_reward.tasks import TASKS


def fill(template: str, values: dict[str, str]) -> str:
    """The template with each `{field}` of `values` replaced, all at once.

    Braces in a caption, or around anything that is not a field, stay as they are.
    """
    pattern = "|".join(re.escape("{" + name + "}") for name in values)
    return re.sub(pattern, lambda found: values[found[0][1:-1]], template) if values else template


def shown_media(comparison: Comparison, order: Order) -> tuple[str, ...]:
    """The media that the model sees, in their order: the context, then media candidates."""
    candidates = comparison.presented(order)[0]
    return (*comparison.context, *(candidates if TASKS[comparison.task].compares_media else ()))


def render(comparison: Comparison, order: Order, template: str) -> str:
    """The prompt as it is written to rows, with one placeholder for each medium.

    A template may hold the placeholders itself, where stage 1 had them elsewhere than in front.
    Raises ValueError when their number is not that of the media.
    """
    task = TASKS[comparison.task]
    count = len(shown_media(comparison, order))
    check_media_count(template, task, count)
    if task.placeholder not in template:
        template = task.placeholder * count + template
    if task.compares_media:
        return fill(template, {"caption": comparison.text})
    first, second = comparison.presented(order)[0]
    return fill(template, {"question": comparison.text, "answer_1": first, "answer_2": second})


def check_template(template: str, task: Task) -> None:
    """Raise ValueError when a field of the task is missing from the template."""
    missing = [name for name in task.fields if "{" + name + "}" not in template]
    if missing:
        raise ValueError(
            f"the template has no {{{missing[0]}}}; task {task.name} needs "
            + ", ".join("{" + name + "}" for name in task.fields)
        )


def check_media_count(template: str, task: Task, count: int) -> None:
    """Raise ValueError when the template holds placeholders, but not one for each of the media."""
    placeholders = template.count(task.placeholder)
    if placeholders not in (0, count):
        raise ValueError(
            f"the template has {placeholders} {task.placeholder}, but {count} are shown"
        )


def template_hash(template: str) -> str:
    """16 hexadecimal digits that stand for the exact text of a template."""
    return hashlib.sha256(template.encode()).hexdigest()[:16]


def mixed_templates(hashes: Mapping[str, Collection[str]]) -> str:
    """A warning when rows of one task (task -> template hashes) have several prompts; else ""."""
    mixed = [f"{task}: {', '.join(sorted(set(of)))}" for task, of in hashes.items() if len(of) > 1]
    if not mixed:
        return ""
    return (
        "warning: the texts answer differently worded prompts (template hashes by task: "
        f"{'; '.join(mixed)}); a model should be trained on the one that it was sampled with"
    )
