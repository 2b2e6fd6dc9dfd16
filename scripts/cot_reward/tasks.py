"""The tasks: prompt template, answer strings and media layout of each, in one copy."""

import hashlib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from cot_reward.records import Comparison, Order

# Captions follow the template's last marker; candidates of understanding tasks follow theirs.
CAPTION_MARKER = "Text Caption:"


@dataclass(frozen=True)
class Task:
    """One kind of comparison.

    `noun` names a candidate in texts ("Image 1"). `medium` is what the model is shown: the two
    candidates, or, where candidates are answer texts, what the question is about. `fields` are what
    a template may name in braces.
    """

    name: str
    noun: str
    medium: Literal["image", "video"]
    fields: tuple[str, ...]
    template: str

    @property
    def placeholder(self) -> str:
        """The token that stands for one medium in a written prompt."""
        return f"<{self.medium}>"

    @property
    def answers(self) -> tuple[str, str]:
        """The two strings of which the answer block must hold exactly one."""
        return f"{self.noun} 1 is better", f"{self.noun} 2 is better"


def _generation(noun: str, what: str, dimensions: str) -> str:
    return f"""You are shown a caption and two {what} that were made from it. Judge which one \
is better.

Look at each of these dimensions, and at any other that matters here:
{dimensions}
Give both {what} a score from 1 to 10 in every dimension, each with a short reason. Then add \
up the scores of each. Write all of your reasoning inside <think> and </think>. Then, inside \
<answer> and </answer>, write exactly '{noun} 1 is better' or '{noun} 2 is better', whichever has \
the higher total, and nothing else.

The form, with made-up scores:
<think>
1. Semantic consistency: {noun} 1 (6/10) - ...; {noun} 2 (9/10) - ...
2. Aesthetics: {noun} 1 (8/10) - ...; {noun} 2 (7/10) - ...
3. Authenticity: {noun} 1 (7/10) - ...; {noun} 2 (8/10) - ...
Total score:
{noun} 1: 6+8+7=21
{noun} 2: 9+7+8=24
</think>
<answer>{noun} 2 is better</answer>

{CAPTION_MARKER} [{{caption}}]"""


def _understanding(what: str) -> str:
    return f"""You are shown {what}, a question about it, and two answers. Judge which answer is \
better.

Look at each of these dimensions, and at any other that matters here:
- Semantic accuracy: does the answer say what can be seen?
- Correctness: is it logically and factually right?
- Clarity: is it easy to follow, and as long as it needs to be?
Give both answers a score from 1 to 10 in every dimension, each with a short reason. Then add \
up the scores of each. Write all of your reasoning inside <think> and </think>. Then, inside \
<answer> and </answer>, write exactly 'Answer 1 is better' or 'Answer 2 is better', whichever has \
the higher total, and nothing else.

The form, with made-up scores:
<think>
1. Semantic accuracy: Answer 1 (6/10) - ...; Answer 2 (9/10) - ...
2. Correctness: Answer 1 (8/10) - ...; Answer 2 (7/10) - ...
3. Clarity: Answer 1 (7/10) - ...; Answer 2 (8/10) - ...
Total score:
Answer 1: 6+8+7=21
Answer 2: 9+7+8=24
</think>
<answer>Answer 2 is better</answer>

Question: [{{question}}]
Answer 1: [{{answer_1}}]
Answer 2: [{{answer_2}}]"""


_LOOKS = """- Semantic consistency: how closely does it follow the caption?
- Aesthetics: composition, colour, expression
- Authenticity: is it realistic, and right in its details?"""
_MOVES = _LOOKS + "\n- Motion: is it smooth, and steady from frame to frame?"
_CAPTION_FIELDS = ("caption",)
_ANSWER_FIELDS = ("question", "answer_1", "answer_2")

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            "image_generation",
            "Image",
            "image",
            _CAPTION_FIELDS,
            _generation("Image", "images", _LOOKS),
        ),
        Task(
            "video_generation",
            "Video",
            "video",
            _CAPTION_FIELDS,
            _generation("Video", "videos", _MOVES),
        ),
        Task("image_understanding", "Answer", "image", _ANSWER_FIELDS, _understanding("an image")),
        Task("video_understanding", "Answer", "video", _ANSWER_FIELDS, _understanding("a video")),
    )
}


def fill(template: str, values: dict[str, str]) -> str:
    """The template with each `{field}` of `values` replaced, all at once.

    Braces in a caption, or around anything that is not a field, stay as they are.
    """
    pattern = "|".join(re.escape("{" + name + "}") for name in values)
    return re.sub(pattern, lambda found: values[found[0][1:-1]], template) if values else template


def shown(comparison: Comparison, order: Order) -> tuple[str, ...]:
    """The media that the model sees, in their order: the context, then media candidates."""
    candidates = comparison.presented(order)[0]
    return (*comparison.context, *(candidates if candidates_are_media(comparison.task) else ()))


def candidates_are_media(task: str) -> bool:
    """Whether the task compares media, and not answers about a medium."""
    return TASKS[task].fields == _CAPTION_FIELDS


def prompt(comparison: Comparison, order: Order, template: str) -> str:
    """The prompt as it is written to rows, with one placeholder for each medium.

    A template may hold the placeholders itself, where stage 1 had them elsewhere than in front.
    Raises ValueError when their number is not that of the media.
    """
    task = TASKS[comparison.task]
    count = len(shown(comparison, order))
    if task.placeholder not in template:
        template = task.placeholder * count + template
    if template.count(task.placeholder) != count:
        raise ValueError(
            f"the template has {template.count(task.placeholder)} {task.placeholder}, "
            f"but {count} are shown"
        )
    if candidates_are_media(comparison.task):
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


def caption_in(prompt: str) -> str:
    """The caption inside a filled prompt: what follows the last marker, brackets removed.

    Raises ValueError when there is no marker, or nothing after it.
    """
    _, marker, caption = prompt.rpartition(CAPTION_MARKER)
    caption = caption.strip()
    if caption.startswith("[") and caption.endswith("]"):
        caption = caption[1:-1].strip()
    if not marker or not caption:
        raise ValueError(f"no caption: the prompt has no text after '{CAPTION_MARKER}'")
    return caption
