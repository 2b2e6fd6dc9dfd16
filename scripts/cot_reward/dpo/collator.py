"""Batches of pairs: images are opened here, when a batch needs them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.nn.utils.rnn import pad_sequence
from trl import prepare_multimodal_messages
from trl.data_utils import apply_chat_template
from trl.trainer.dpo_trainer import DataCollatorForVisionPreference

from cot_reward.errors import UserError
from cot_reward.media.images import MAX_PIXELS, bound, load_image
from cot_reward.media.paths import MediaError, resolve

# What the trainer wants to know of each pair, beside TRL's batch; both stand in the rows.
FACTS = ("answer", "same_model")
# TRL's names of the reference log-probs, in rows and batches.
REFERENCES = ("ref_chosen_logps", "ref_rejected_logps")


@dataclass
class PairCollator(DataCollatorForVisionPreference):
    """TRL's collator for rows with `image_paths`.

    Returns what TRL's returns: `input_ids`, `attention_mask`, `completion_mask` and
    `mm_token_type_ids` of shape (2 x pairs, length), chosen first, then rejected, with
    `pixel_values` and `image_grid_thw` of both halves. Beside it `ref_chosen_logps` and
    `ref_rejected_logps`, where the rows have them, and `pairs`: FACTS and the number of `images`,
    each of shape (pairs,). Raises UserError for an image that cannot be opened.
    """

    image_folder: Path = field(default_factory=Path)
    image_max_pixels: int = MAX_PIXELS

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        return dict(super().torch_call(self.opened(examples))) | beside(examples)

    def opened(self, examples: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The conversational part of the rows, with pictures for paths."""
        # Pairs about one comparison often meet in a batch: open each picture once.
        pictures: dict[str, Image.Image] = {}
        for example in examples:
            for path in example["image_paths"]:
                if path not in pictures:
                    pictures[path] = self._open(path)
        return [
            {
                "prompt": _without_none(example["prompt"]),
                "chosen": example["chosen"],
                "rejected": example["rejected"],
                "images": [pictures[path] for path in example["image_paths"]],
            }
            for example in examples
        ]

    def _open(self, path: str) -> Image.Image:
        try:
            image = load_image(resolve(path, self.image_folder))
            return bound(image, self.image_max_pixels)
        except MediaError as error:
            raise UserError(str(error)) from None


@dataclass
class SharedPrefixCollator(PairCollator):
    """Batches in the layout of `shared_prefix`: each prompt and each of its images once.

    Token ids are those of `PairCollator`. `input_ids` and `completion_mask` hold the prompts' last
    token and the responses, (2 x pairs, 1 + longest response). `attention_mask` is that of the
    whole stock rows, since TRL counts tokens by it.
    """

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        ready = self.opened(examples)
        texts = [text_of(row, self.processor) for row in ready]
        prompts = self.processor(
            images=[row["images"] for row in ready],
            text=[text["prompt"] for text in texts],
            padding=True,
            padding_side="right",
            return_tensors="pt",
            add_special_tokens=False,
        )
        ids, mask = prompts["input_ids"], prompts["attention_mask"]
        lengths = mask.sum(dim=1)
        last = ids.gather(1, lengths[:, None] - 1).repeat(2, 1)[:, 0]
        tokenizer = self.processor.tokenizer
        responses = [
            tokenizer(text[side], add_special_tokens=False)["input_ids"]
            for side in ("chosen", "rejected")
            for text in texts
        ]
        widths = tuple(
            1 + max(map(len, part))
            for part in (responses[: len(examples)], responses[len(examples) :])
        )
        pad = tokenizer.pad_token_id
        completions = _padded(responses, pad)
        completion_mask = _padded([[1] * len(response) for response in responses], 0)
        nothing = torch.zeros_like(last)[:, None]
        # Of the prompt's mask the last token goes: it stands at the head of the responses.
        before = torch.arange(ids.shape[1] - 1) < lengths[:, None] - 1
        return {
            "input_ids": torch.cat((last[:, None], completions), dim=1),
            "attention_mask": torch.cat((mask.repeat(2, 1), completion_mask), dim=1),
            "completion_mask": torch.cat((nothing, completion_mask), dim=1),
            "prompt_ids": ids[:, :-1].masked_fill(~before, pad),
            "prompt_mask": before.to(mask.dtype),
            "prompt_mm_token_type_ids": prompts["mm_token_type_ids"][:, :-1] * before,
            "widths": widths,
            "pixel_values": prompts["pixel_values"],
            "image_grid_thw": prompts["image_grid_thw"],
        } | beside(examples)


def text_of(row: dict[str, Any], processor: Any) -> dict[str, str]:
    """Prompt, chosen and rejected as the chat template writes them, by TRL's own functions."""
    talk = {
        "prompt": prepare_multimodal_messages(row["prompt"], images=row["images"]),
        "chosen": prepare_multimodal_messages(row["chosen"]),
        "rejected": prepare_multimodal_messages(row["rejected"]),
    }
    return apply_chat_template(talk, processor)


def beside(examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What a batch has beside TRL's own keys."""
    facts = {name: torch.tensor([example[name] for example in examples]) for name in FACTS}
    facts["images"] = torch.tensor([len(example["image_paths"]) for example in examples])
    references = {
        name: torch.tensor([example[name] for example in examples], dtype=torch.float32)
        for name in REFERENCES
        if name in examples[0]
    }
    return references | {"pairs": facts}


def first_pairs(batch: dict[str, Any], count: int) -> dict[str, Any]:
    """The batch of either collator without the pairs behind the first `count`."""
    facts = batch["pairs"]
    pairs, images = len(facts["images"]), facts["images"]
    grids = batch["image_grid_thw"].split(int(images.sum()))
    kept_images = int(images[:count].sum())
    patches = [int(grid[:kept_images].prod(dim=1).sum()) for grid in grids]
    parts = batch["pixel_values"].split([int(grid.prod(dim=1).sum()) for grid in grids])
    kept = {
        name: torch.cat([part[:count] for part in value.split(pairs)])
        if isinstance(value, torch.Tensor)
        else value
        for name, value in batch.items()
        if name not in ("pixel_values", "image_grid_thw", "pairs")
    }
    return kept | {
        "pixel_values": torch.cat([part[:n] for part, n in zip(parts, patches, strict=True)]),
        "image_grid_thw": torch.cat([grid[:kept_images] for grid in grids]),
        "pairs": {name: value[:count] for name, value in facts.items()},
    }


def _padded(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)


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
