"""Image editing: which of two edits of an image follows an instruction better."""

from cot_reward.records import Task

_TEMPLATE = """You are shown an image, an instruction to edit it, and two edits that were made of \
it: the first picture is the source, the second is Image 1, the third is Image 2. Judge which edit \
is better.

Look at each of these dimensions, and at any other that matters here:
- Instruction: is what was asked for there, all of it, and in the right place?
- Preservation: is everything else as it was in the source?
- Quality: is it realistic, and free of seams and damage?
Give both edits a score from 1 to 10 in every dimension, each with a short reason. Then add up the \
scores of each. Write all of your reasoning inside <think> and </think>. Then, inside <answer> and \
</answer>, write exactly 'Image 1 is better' or 'Image 2 is better', whichever has the higher \
total, and nothing else.

The form, with made-up scores:
<think>
1. Instruction: Image 1 (6/10) - ...; Image 2 (9/10) - ...
2. Preservation: Image 1 (8/10) - ...; Image 2 (7/10) - ...
3. Quality: Image 1 (7/10) - ...; Image 2 (8/10) - ...
Total score:
Image 1: 6+8+7=21
Image 2: 9+7+8=24
</think>
<answer>Image 2 is better</answer>

Instruction: [{instruction}]"""


IMAGE_EDITING = Task(
    "image_editing", "Image", "image", ("instruction",), _TEMPLATE, has_context=True
)
