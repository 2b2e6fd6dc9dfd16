"""Batches of pairs: images are opened here, and a shared prompt is cut before its last token.

`PairCollator` makes TRL's batches. `SharedPrefixCollator` makes those of `shared_prefix`, with each
prompt once and its last token moved to the head of its responses.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from trl import prepare_multimodal_messages
from trl.data_utils import apply_chat_template
from trl.trainer.dpo_trainer import DataCollatorForVisionPreference

from cot_reward.dpo.answer_tokens import answer_mask
from cot_reward.dpo.preference_tokens import compared_mask
from cot_reward.dpo.shared_prefix import split_last_token
from cot_reward.media.images import MAX_PIXELS
from cot_reward.training.rows import open_image, without_null_keys

# Columns of the rows by which the metrics group pairs; `pairs.group_labels` makes them.
GROUP_COLUMNS = ("answer", "same_model")
# The reference log-probs in rows and batches: of the whole texts, under TRL's names, of the tokens
# of their answer blocks, and of the compared tokens, in the order of `reference.Logps`.
REFERENCE_COLUMNS = (
    "ref_chosen_logps", "ref_rejected_logps",
    "ref_chosen_answer_logps", "ref_rejected_answer_logps",
    "ref_chosen_compared_logps", "ref_rejected_compared_logps",
)  # fmt: skip


@dataclass
class PairCollator(DataCollatorForVisionPreference):
    """TRL's collator for rows with `image_paths`.

    Returns TRL's keys: `input_ids`, `attention_mask`, `completion_mask` and `mm_token_type_ids` of
    shape (2 x pairs, length), chosen first, then rejected, with `pixel_values` and
    `image_grid_thw` of both halves. Adds `answer_mask` and `compared_mask`, of the shape of
    `completion_mask` (see `answer_tokens` and `preference_tokens`), the REFERENCE_COLUMNS, if the
    rows have them, and `pairs`: the GROUP_COLUMNS and the number of `images`, each of shape
    (pairs,).
    Raises UserError for an image that cannot be opened.
    """

    image_folder: Path = field(default_factory=Path)
    image_max_pixels: int = MAX_PIXELS
    preference_tokens: str = "all"

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        rows = self.with_images(examples)
        texts = [apply_template(row, self.processor) for row in rows]
        batch = dict(super().torch_call(rows))
        return self.with_token_masks(batch, examples, texts)

    def with_token_masks(
        self, batch: dict[str, Any], examples: list[dict[str, Any]], texts: list[dict[str, str]]
    ) -> dict[str, Any]:
        """The batch with the masks of single tokens and the pair fields.

        `texts` are the rows as the template writes them.
        """
        sides, whole = ("chosen", "rejected"), batch["completion_mask"]
        answer = answer_mask(
            [example[side][0]["content"] for side in sides for example in examples],
            [text[side] for side in sides for text in texts],
            whole,
            self.processor.tokenizer,
        )
        answer_only = [example["answer_only"] for example in examples]
        compared = compared_mask(
            self.preference_tokens, batch["input_ids"], whole, answer, answer_only
        )
        masks = {"answer_mask": answer, "compared_mask": compared}
        return batch | masks | _pair_fields(examples)

    def with_images(self, examples: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The conversational part of the rows, with opened images in place of their paths."""
        # Pairs about one comparison often share a batch: open each image once.
        images: dict[str, Image.Image] = {}
        for example in examples:
            for path in example["image_paths"]:
                if path not in images:
                    images[path] = open_image(path, self.image_folder, self.image_max_pixels)
        return [
            {
                "prompt": without_null_keys(example["prompt"]),
                "chosen": example["chosen"],
                "rejected": example["rejected"],
                "images": [images[path] for path in example["image_paths"]],
            }
            for example in examples
        ]


@dataclass
class SharedPrefixCollator(PairCollator):
    """Batches in the layout of `shared_prefix`: each prompt and each of its images once.

    Token ids are those of `PairCollator`. `input_ids` and `completion_mask` hold the prompts' last
    token and the responses, (2 x pairs, 1 + longest response). `attention_mask` has the shape of
    the stock rows, since TRL counts tokens by it.
    """

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        rows = self.with_images(examples)
        texts = [apply_template(row, self.processor) for row in rows]
        prompts = self.processor(
            images=[row["images"] for row in rows],
            text=[text["prompt"] for text in texts],
            padding=True,
            padding_side="right",
            return_tensors="pt",
            add_special_tokens=False,
        )
        tokenizer = self.processor.tokenizer
        responses = [
            tokenizer(text[side], add_special_tokens=False)["input_ids"]
            for side in ("chosen", "rejected")
            for text in texts
        ]
        response_ids = _pad(responses, tokenizer.pad_token_id)
        response_mask = _pad([[1] * len(response) for response in responses], 0)
        chosen, rejected = responses[: len(examples)], responses[len(examples) :]
        full_mask = prompts["attention_mask"]
        prompt_ids, prompt_mask, last = split_last_token(
            prompts["input_ids"], full_mask, tokenizer.pad_token_id
        )
        heads = last.repeat(2, 1)
        completion_mask = torch.cat((torch.zeros_like(heads), response_mask), dim=1)
        batch = {
            "input_ids": torch.cat((heads, response_ids), dim=1),
            "attention_mask": torch.cat((full_mask.repeat(2, 1), response_mask), dim=1),
            "completion_mask": completion_mask,
            "prompt_ids": prompt_ids,
            "prompt_mask": prompt_mask,
            "prompt_mm_token_type_ids": prompts["mm_token_type_ids"][:, :-1] * prompt_mask.bool(),
            "widths": tuple(1 + max(map(len, part)) for part in (chosen, rejected)),
            "pixel_values": prompts["pixel_values"],
            "image_grid_thw": prompts["image_grid_thw"],
        }
        return self.with_token_masks(batch, examples, texts)


def apply_template(row: dict[str, Any], processor: Any) -> dict[str, str]:
    """Prompt, chosen and rejected as the chat template writes them, by TRL's own functions."""
    messages = {
        "prompt": prepare_multimodal_messages(row["prompt"], images=row["images"]),
        "chosen": prepare_multimodal_messages(row["chosen"]),
        "rejected": prepare_multimodal_messages(row["rejected"]),
    }
    return apply_chat_template(messages, processor)


def _pair_fields(examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The keys that a batch has in addition to TRL's."""
    groups = {name: torch.tensor([row[name] for row in examples]) for name in GROUP_COLUMNS}
    groups["images"] = torch.tensor([len(row["image_paths"]) for row in examples])
    references = {
        name: torch.tensor([row[name] for row in examples], dtype=torch.float32)
        for name in REFERENCE_COLUMNS
        if name in examples[0]
    }
    return references | {"pairs": groups}


def keep_first_pairs(batch: dict[str, Any], count: int) -> dict[str, Any]:
    """A batch of either collator, cut to its first `count` pairs and their images."""
    groups = batch["pairs"]
    pairs, images = len(groups["images"]), groups["images"]
    grids = batch["image_grid_thw"].split(int(images.sum()))
    kept_images = int(images[:count].sum())
    kept_patches = [int(grid[:kept_images].prod(dim=1).sum()) for grid in grids]
    patches = batch["pixel_values"].split([int(grid.prod(dim=1).sum()) for grid in grids])
    kept = {
        name: torch.cat([part[:count] for part in value.split(pairs)])
        if isinstance(value, Tensor)
        else value
        for name, value in batch.items()
        if name not in ("pixel_values", "image_grid_thw", "pairs")
    }
    return kept | {
        "pixel_values": torch.cat(
            [part[:number] for part, number in zip(patches, kept_patches, strict=True)]
        ),
        "image_grid_thw": torch.cat([grid[:kept_images] for grid in grids]),
        "pairs": {name: value[:count] for name, value in groups.items()},
    }


def _pad(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)
