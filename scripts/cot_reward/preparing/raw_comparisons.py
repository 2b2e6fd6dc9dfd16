"""A comparison as a data set has it -> one of this project, with media as files."""

import hashlib
from typing import Any

from cot_reward.preparing.mapping import RawPair
from cot_reward.preparing.shown_media import MediaFiles
from cot_reward.records import Candidate, Comparison, Task
from cot_reward.rows.adapters.comparison import adapt, plain_row
from cot_reward.tasks import TASKS


def comparison_of(raw: RawPair, task_name: str, files: MediaFiles) -> Comparison:
    """The comparison, whose media are found or made by `files`. Raises ValueError and MediaError.

    `plain_row` of it is a row that a later step can read.
    """
    if task_name not in TASKS:
        raise ValueError(f"'task' is {task_name!r:.60}; known: {', '.join(TASKS)}")
    task = TASKS[task_name]
    first, second = (_candidate(value, task, files) for value in raw.candidates)
    label = raw.label
    if raw.may_swap and _is_odd(raw.text, first, second):
        first, second, label = second, first, 3 - label
    context = files.context(raw.context, task) if raw.context else []
    if bool(context) != task.has_context:
        raise ValueError(
            f"task {task_name} needs context=COLUMN (--map)"
            if task.has_context
            else f"task {task_name} has no context; leave context=... out of --map"
        )
    made = Comparison(task_name, raw.text, (first, second), label, context=tuple(context))
    # What a later step cannot read is a bad row here.
    return adapt(plain_row(made), "")


def _candidate(value: Any, task: Task, files: MediaFiles) -> Candidate:
    if not task.compares_media:
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"an answer must be a text that is not empty, not {value!r:.60}")
        return value
    return files.video(value) if task.medium == "video" else files.image(value)


def _is_odd(text: str, first: Candidate, second: Candidate) -> bool:
    """Half of all comparisons, always the same ones: there the better candidate comes second."""
    material = repr((text, sorted((str(first), str(second)))))
    return bool(hashlib.sha256(material.encode()).digest()[0] & 1)
