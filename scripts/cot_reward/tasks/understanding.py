"""Image and video understanding: which of two answers to a question about a medium is better."""

from cot_reward.records import Task
from cot_reward.tasks.wording import Wording, prompts

_FIELDS = ("question", "answer_1", "answer_2")


def _wording(what: str) -> Wording:
    return Wording(
        f"You are shown {what}, a question about it, and two answers. Judge which answer is "
        "better.",
        "answers",
        (
            ("Semantic accuracy", "does the answer say what can be seen?"),
            ("Correctness", "is it logically and factually right?"),
            ("Clarity", "is it easy to follow, and as long as it needs to be?"),
        ),
        "Question: [{question}]\nAnswer 1: [{answer_1}]\nAnswer 2: [{answer_2}]",
    )


IMAGE_UNDERSTANDING = Task(
    "image_understanding", "Answer", "image", _FIELDS, prompts("Answer", _wording("an image")),
    has_context=True,
)  # fmt: skip
VIDEO_UNDERSTANDING = Task(
    "video_understanding", "Answer", "video", _FIELDS,
    prompts("Answer", _wording("a video as frames, in the order of time")), has_context=True,
)  # fmt: skip
