"""Image and video understanding: which of two answers to a question about a medium is better."""

from cot_reward.records import Task


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


_FIELDS = ("question", "answer_1", "answer_2")
IMAGE_UNDERSTANDING = Task(
    "image_understanding", "Answer", "image", _FIELDS, _understanding("an image"), has_context=True
)
VIDEO_UNDERSTANDING = Task(
    "video_understanding", "Answer", "video", _FIELDS,
    _understanding("a video as frames, in the order of time"), has_context=True,
)  # fmt: skip
