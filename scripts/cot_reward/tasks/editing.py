"""Image editing: which of two edits of an image follows an instruction better."""

from cot_reward.records import Task
from cot_reward.tasks.wording import Wording, prompts

_EDITS = Wording(
    "You are shown an image, an instruction to edit it, and two edits that were made of it: the "
    "first picture is the source, the second is Image 1, the third is Image 2. Judge which edit is "
    "better.",
    "edits",
    (
        ("Instruction", "is what was asked for there, all of it, and in the right place?"),
        ("Preservation", "is everything else as it was in the source?"),
        ("Quality", "is it realistic, and free of seams and damage?"),
    ),
    "Instruction: [{instruction}]",
)

IMAGE_EDITING = Task(
    "image_editing", "Image", "image", ("instruction",), prompts("Image", _EDITS), has_context=True
)
