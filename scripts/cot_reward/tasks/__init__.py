"""The tasks by name: a kind of comparison, with its prompt, answer strings and media layout."""

from cot_reward.records import Task
from cot_reward.tasks.editing import IMAGE_EDITING
from cot_reward.tasks.generation import IMAGE_GENERATION, VIDEO_GENERATION
from cot_reward.tasks.understanding import IMAGE_UNDERSTANDING, VIDEO_UNDERSTANDING

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        IMAGE_GENERATION, VIDEO_GENERATION, IMAGE_EDITING, IMAGE_UNDERSTANDING, VIDEO_UNDERSTANDING,
    )
}  # fmt: skip
