"""Batches of pairs: images are opened here, when a batch needs them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from trl.trainer.dpo_trainer import DataCollatorForVisionPreference

from cot_reward import media
from cot_reward.settings import UserError


@dataclass
class PairCollator(DataCollatorForVisionPreference):
    """TRL's collator for rows whose `images` are paths.

    Returns what TRL's returns: `input_ids`, `attention_mask`, `completion_mask` and
    `mm_token_type_ids` of shape (2 x pairs, length), chosen first, then rejected, with
    `pixel_values` and `image_grid_thw` of both halves. Raises UserError for an image that cannot
    be opened.
    """

    image_folder: Path = field(default_factory=Path)
    image_max_pixels: int = 262144

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        # Pairs about one comparison often meet in a batch: open each picture once.
        opened: dict[str, Image.Image] = {}
        ready = []
        for example in examples:
            for path in example["images"]:
                if path not in opened:
                    opened[path] = self._open(path)
            images = [opened[path] for path in example["images"]]
            ready.append(example | {"prompt": _without_none(example["prompt"]), "images": images})
        return super().torch_call(ready)

    def _open(self, path: str) -> Image.Image:
        try:
            image = media.load(media.resolve(path, self.image_folder))
            return media.bound(image, self.image_max_pixels)
        except media.MediaError as error:
            raise UserError(str(error)) from None


def _without_none(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages as they were written: Arrow gives every content part every key.

    An image part comes back as {"type": "image", "text": None}, and a chat template is free to
    look for keys rather than for the type.
    """
    return [
        message
        | {
            "content": [
                {key: value for key, value in part.items() if value is not None}
                for part in message["content"]
            ]
        }
        for message in messages
    ]
