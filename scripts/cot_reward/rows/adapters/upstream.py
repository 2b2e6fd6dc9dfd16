"""Rows in the form of the UnifiedReward data sets (EvalMuse, HPD, OIP, ...)."""

from collections.abc import Mapping
from typing import Any

from cot_reward.media.paths import media_path
from cot_reward.records import Comparison, turns
from cot_reward.rows.labels import FileLabels, Meaning

SENTENCES: dict[str, Meaning] = {
    "Image 1 is better than Image 2.": "1",
    "Image 2 is better than Image 1.": "2",
}


def recognises(row: Mapping[str, Any]) -> bool:
    return {"prompt", "images", "conversations"} <= row.keys()


def adapt(row: dict[str, Any], prefix: str, labels: FileLabels | None = None) -> Comparison:
    """A row has the caption in `prompt`, two `images`, and the label in the gpt turn.

    Its human turn is a direct-answer prompt and is not used.
    """
    images = row.get("images")
    if not isinstance(images, list) or len(images) != 2:
        raise ValueError("'images' must be a list of two paths")
    caption = row.get("prompt")
    if not isinstance(caption, str):
        raise ValueError("'prompt' must be the caption, a string")
    _, preference = turns(row)
    label = (labels or FileLabels()).preferred(preference, SENTENCES)
    first, second = (media_path(path, prefix) for path in images)
    return Comparison("image_generation", caption, (first, second), label)
