"""Image and video generation: which of two media fits a caption better.

A video is shown as its frames: the first half of the pictures are those of Video 1.
"""

from cot_reward.records import Task

# The caption follows the last marker of a prompt.
CAPTION_MARKER = "Text Caption:"


def _generation(noun: str, what: str, dimensions: str, shown: str = "") -> str:
    return f"""You are shown a caption and two {what} that were made from it. {shown}Judge which \
one is better.

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


_IMAGE_DIMENSIONS = """- Semantic consistency: how closely does it follow the caption?
- Aesthetics: composition, colour, expression
- Authenticity: is it realistic, and right in its details?"""
# Without the words for pictures and videos there is nothing that tells where a video begins.
_FRAMES = (
    "Each video is shown as frames, in the order of time: the first half of the pictures are the "
    "frames of Video 1, the second half those of Video 2. "
)
_VIDEO_DIMENSIONS = _IMAGE_DIMENSIONS + "\n- Motion: is it smooth, and steady from frame to frame?"


IMAGE_GENERATION = Task(
    "image_generation", "Image", "image", ("caption",),
    _generation("Image", "images", _IMAGE_DIMENSIONS), has_context=False,
)  # fmt: skip
VIDEO_GENERATION = Task(
    "video_generation", "Video", "video", ("caption",),
    _generation("Video", "videos", _VIDEO_DIMENSIONS, _FRAMES), has_context=False,
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
