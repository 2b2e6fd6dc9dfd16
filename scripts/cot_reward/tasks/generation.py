"""Image and video generation: which of two media fits a caption better.

A video is shown as its frames: the first half of the pictures are those of Video 1.
"""

from cot_reward.records import Task
from cot_reward.tasks.wording import Wording, prompts

# The caption follows the last marker of a prompt.
CAPTION_MARKER = "Text Caption:"
_ENDING = f"{CAPTION_MARKER} [{{caption}}]"

_DIMENSIONS = (
    ("Semantic consistency", "how closely does it follow the caption?"),
    ("Aesthetics", "composition, colour, expression"),
    ("Authenticity", "is it realistic, and right in its details?"),
)
_IMAGES = Wording(
    "You are shown a caption and two images that were made from it. Judge which one is better.",
    "images", _DIMENSIONS, _ENDING,
)  # fmt: skip
_VIDEOS = Wording(
    # Without these words nothing tells a model where a video begins.
    "You are shown a caption and two videos that were made from it. Each video is shown as frames, "
    "in the order of time: the first half of the pictures are the frames of Video 1, the second "
    "half those of Video 2. Judge which one is better.",
    "videos",
    (*_DIMENSIONS, ("Motion", "is it smooth, and steady from frame to frame?")),
    _ENDING,
)

IMAGE_GENERATION = Task(
    "image_generation", "Image", "image", ("caption",), prompts("Image", _IMAGES),
    has_context=False,
)  # fmt: skip
VIDEO_GENERATION = Task(
    "video_generation", "Video", "video", ("caption",), prompts("Video", _VIDEOS),
    has_context=False,
)  # fmt: skip


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
