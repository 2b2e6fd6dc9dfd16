"""Judged rows as comparisons: a later pass asks the comparisons of an earlier one again."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from cot_reward.media.paths import media_path
from cot_reward.records import ROW_FIELDS, Comparison, Task, turns
from cot_reward.rows.validation import (
    check_compared_media,
    check_label,
    check_order,
    check_prompt,
    check_task,
    check_types,
    form_of,
    is_key,
)
from cot_reward.rows.wording import Wording
from cot_reward.tasks import TASKS
from cot_reward.tasks.prompts import IMAGE

_NEEDED = ("conversations", "id", "task", "order", "label", "images", "videos")
_MAX_PROMPT_TO_SEARCH = 20_000
# Searching takes up to a second a prompt: rows that do not fit must not all be searched.
_MAX_SEARCHES = 3
# A caption begins and ends where a word does not go on.
_EDGE = re.compile(r"(?<!\w)|(?!\w)")


def recognises(row: dict[str, Any]) -> bool:
    return row.keys() >= {*_NEEDED, "verdict"} and is_key(row["id"])


class JudgedRows:
    """The adapter of one file of judged rows.

    `templates` (task -> template) are tried first to find the caption in a prompt. The row's key
    tells whether a caption is the right one, so that any other template works as well where the
    caption is all that differs between its prompts.
    """

    def __init__(self, templates: Mapping[str, str]) -> None:
        self._templates = templates
        # (task, template hash) -> what stands around the caption, once a key has proved it.
        self._wordings: dict[tuple[str, str], Wording] = {}
        self._searches = 0

    def adapt(self, row: dict[str, Any], prefix: str) -> Comparison:
        """The comparison that the row is about, in the given order.

        Paths of judged rows are relative to the media root; `prefix` is not used. Raises ValueError
        for a row that cannot be used, and when its prompt, media and key do not belong together.
        """
        missing = [name for name in _NEEDED if name not in row]
        if missing:
            raise ValueError(f"a judged row needs '{missing[0]}'")
        check_types(row, ROW_FIELDS)
        check_task(row["task"])
        check_order(row["order"])
        check_label(row["label"])
        form_of(row)
        if row.get("verdict") in ("correct", "incorrect"):
            _check_answer(row)
        prompt, _ = turns(row)
        task = TASKS[row["task"]]
        check_compared_media(row["images"], row["videos"], task)
        check_prompt(prompt, row["images"], row["videos"])
        media = tuple(media_path(path, "") for path in row["images"] or row["videos"])
        for values in self._fields(prompt, task, str(row.get("template_hash", "")), len(media)):
            comparison = _comparison(row, task, values, media)
            if comparison is not None and comparison.key == row["id"]:
                self._remember(prompt, task, row, values)
                return comparison
        raise ValueError(
            "the row's 'id' is not the key of its prompt and media: the row was changed, its media "
            "root was another one, or its prompt is of a template that --template does not name"
        )

    def _fields(
        self, prompt: str, task: Task, template_hash: str, media_count: int
    ) -> Iterator[dict[str, str]]:
        """What may have been filled into the prompt's template, the likeliest first."""
        for template in (self._templates.get(task.name), *task.templates.values()):
            if template is not None and (found := _unfilled(prompt, template, task, media_count)):
                yield found
        if task.compares_media:
            wording = self._wordings.get((task.name, template_hash))
            if wording is not None and (caption := wording.caption_in(prompt)):
                yield {task.text_field: caption}
            elif (
                wording is None
                and len(prompt) <= _MAX_PROMPT_TO_SEARCH
                and self._searches < _MAX_SEARCHES
            ):
                self._searches += 1
                yield from ({task.text_field: caption} for caption in _parts(prompt))

    def _remember(
        self, prompt: str, task: Task, row: Mapping[str, Any], values: Mapping[str, str]
    ) -> None:
        key = (task.name, str(row.get("template_hash", "")))
        if task.compares_media and key not in self._wordings:
            before, _, after = prompt.rpartition(values[task.text_field])
            self._wordings[key] = Wording(before, after)


def _check_answer(row: Mapping[str, Any]) -> None:
    """Raise ValueError when label, answer and verdict do not fit together."""
    is_right = row.get("answer") == row["label"]
    if is_right != (row["verdict"] == "correct"):
        raise ValueError(
            f"the label is {row['label']}, the answer {row.get('answer')} and the verdict "
            f"{row['verdict']!r}: one of them was changed"
        )


def _unfilled(prompt: str, template: str, task: Task, media_count: int) -> dict[str, str] | None:
    """The values of the fields that make this prompt of the template; None if none do."""
    if IMAGE not in template:
        template = IMAGE * media_count + template
    pattern = re.escape(template)
    for name in task.fields:
        field = re.escape("{" + name + "}")
        # A template may repeat a field.
        pattern = pattern.replace(field, f"(?P<{name}>.+?)", 1).replace(field, f"(?P={name})")
    found = re.fullmatch(pattern, prompt, re.DOTALL)
    return found.groupdict() if found else None


def _parts(prompt: str) -> Iterator[str]:
    """Every part of the prompt that may be its caption, the later and longer ones first."""
    edges = [found.start() for found in _EDGE.finditer(prompt)]
    for start in reversed(edges):
        for end in reversed(edges):
            if end <= start:
                break
            part = prompt[start:end]
            if part == part.strip():
                yield part


def _comparison(
    row: Mapping[str, Any], task: Task, values: Mapping[str, str], media: tuple[str, ...]
) -> Comparison | None:
    """The comparison of these values in the given order; None for values that make none."""
    label = row["label"] if row["order"] == "given" else 3 - row["label"]
    try:
        context, shown = task.parts(media)
        first, second = shown or (values["answer_1"], values["answer_2"])
        if row["order"] == "swapped":
            first, second = second, first
        text, source = values[task.text_field], row.get("source", "")
        return Comparison(task.name, text, (first, second), label, source, context)
    except ValueError:
        return None
