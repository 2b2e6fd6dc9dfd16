"""Batches of rows: images are opened here, and a shared prompt is cut before its last token.

`PairCollator` makes TRL's batches. `SharedPrefixCollator` makes those of `shared_prefix`, with each
prompt once and its last token moved to the head of its responses.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os.path import commonprefix
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from trl import prepare_multimodal_messages
from trl.data_utils import apply_chat_template
from trl.trainer.dpo_trainer import DataCollatorForVisionPreference

from cot_reward.dpo.answer_tokens import answer_mask
from cot_reward.dpo.groups import LABELS, SIDES, Row, conversational_pairs, digests_of
from cot_reward.dpo.preference_tokens import first_difference_mask
from cot_reward.dpo.reference import Logps
from cot_reward.dpo.shared_prefix import split_last_token
from cot_reward.media.images import MAX_PIXELS
from cot_reward.training.rows import open_image, without_null_keys


class Response(NamedTuple):
    """A text, the same as the chat template writes it, and the digest of it with its prompt."""

    content: str
    text: str
    digest: str


class Written(NamedTuple):
    """A row of `groups`: its prompt as the chat template writes it, and its responses."""

    prompt: str
    chosen: list[Response]
    rejected: list[Response]


# What stands for a response that a shorter group does not have.
_NO_RESPONSE = Response("", "", "")


@dataclass
class PairCollator(DataCollatorForVisionPreference):
    """TRL's collator for rows of `groups`: a pair has two rows of the batch, with its prompt each.

    Returns TRL's keys: `input_ids`, `attention_mask`, `completion_mask` and `mm_token_type_ids` of
    shape (2 x pairs, length), chosen first, then rejected, with `pixel_values` and
    `image_grid_thw` of both halves. Adds, by response, in the shape of `completion_mask`:
    `answer_mask` (see `answer_tokens`), and, where all texts of the batch are in `reference`,
    `ref_logps`, the reference's log-prob of each token but the first. By pair: `compared_mask`
    (2 x pairs, length), where `preference_tokens` is "first_difference", and `pairs`: the LABELS,
    the number of each pair's `row`, and the places of its two `responses`, each with pairs as the
    first dimension. `images` counts the images of a prompt, for each time that it is in the batch.
    Raises UserError for an image that cannot be opened.
    """

    image_folder: Path = field(default_factory=Path)
    image_max_pixels: int = MAX_PIXELS
    preference_tokens: str = "all"
    # Digest of a text with its prompt -> the reference's log-probs of its tokens.
    reference: dict[str, Logps] = field(default_factory=dict)

    def torch_call(self, examples: list[Row]) -> dict[str, Any]:
        pairs = [pair for example in examples for pair in conversational_pairs(example)]
        batch = dict(super().torch_call(self.with_images(pairs)))
        batch["images"] = torch.tensor([len(pair["image_paths"]) for pair in pairs])
        places = torch.arange(2 * len(pairs)).view(2, -1).T
        responses = self.responses([written(row, self.processor) for row in examples], examples)
        return self.with_masks(batch, examples, responses, places)

    def with_digests(self, examples: list[Row]) -> dict[str, Any]:
        """The batch, with the `digests` of its responses in the order of its rows, "" for none."""
        responses = self.responses([written(row, self.processor) for row in examples], examples)
        return self(examples) | {"digests": [response.digest for response in responses]}

    def responses(self, texts: Sequence[Written], examples: Sequence[Row]) -> list[Response]:
        """The batch's responses, in the order of its rows."""
        return [
            (text.chosen, text.rejected)[side][pair[side]]
            for side in (0, 1)
            for text, example in zip(texts, examples, strict=True)
            for pair in example["pairs"]
        ]

    def with_masks(
        self,
        batch: dict[str, Any],
        examples: Sequence[Row],
        responses: Sequence[Response],
        places: Tensor,
    ) -> dict[str, Any]:
        """The batch with the masks of single tokens, reference log-probs and `pairs`.

        `responses` are of the batch's rows, and `places` (pairs, 2) tell which of them are a pair's
        chosen and rejected text.
        """
        whole = batch["completion_mask"]
        answer = answer_mask(
            [response.content for response in responses],
            [response.text for response in responses],
            whole,
            self.processor.tokenizer,
        )
        pairs = {
            name: torch.tensor([value for example in examples for value in example[name]])
            for name in LABELS
        }
        pairs["responses"] = places
        pairs["row"] = torch.tensor(
            [number for number, example in enumerate(examples) for _ in example["pairs"]]
        )
        batch |= {"answer_mask": answer, "pairs": pairs}
        if self.preference_tokens == "first_difference":
            both = places.T.flatten()
            ids, mask, in_answer = (tensor[both] for tensor in (batch["input_ids"], whole, answer))
            batch["compared_mask"] = first_difference_mask(
                ids, mask, in_answer, pairs["answer_only"]
            )
        known = [self.reference.get(response.digest) for response in responses if response.digest]
        if all(logps is not None for logps in known):
            batch["ref_logps"] = self._at_tokens(responses, whole)
        return batch

    def _at_tokens(self, responses: Sequence[Response], completion_mask: Tensor) -> Tensor:
        """The reference log-probs of all tokens but the first, 0 outside the responses."""
        logps = torch.zeros(completion_mask.shape)
        for number, response in enumerate(responses):
            if response.digest:
                of_text = torch.from_numpy(self.reference[response.digest])
                logps[number, completion_mask[number].bool()] = of_text
        return logps[:, 1:]

    def with_images(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Rows with opened images in place of their paths, and without null keys in the prompt."""
        # Pairs about one comparison often share a batch: open each image once.
        images: dict[str, Image.Image] = {}
        for row in rows:
            for path in row["image_paths"]:
                if path not in images:
                    images[path] = open_image(path, self.image_folder, self.image_max_pixels)
        return [
            {name: value for name, value in row.items() if name != "image_paths"}
            | {
                "prompt": without_null_keys(row["prompt"]),
                "images": [images[path] for path in row["image_paths"]],
            }
            for row in rows
        ]


@dataclass
class SharedPrefixCollator(PairCollator):
    """Batches in the layout of `shared_prefix`: each prompt, image and text of a row once.

    Token ids are those of `PairCollator`. With as many slots as the longest group has texts,
    `input_ids`, `completion_mask` and what is told by response have the shape (slots x rows, 1 +
    longest response): the prompt's last token and a response, the first text of each row, then the
    second ones; a missing text is empty. `attention_mask` has the shape of stock rows of them,
    since TRL counts tokens by it.
    """

    def torch_call(self, examples: list[Row]) -> dict[str, Any]:
        texts = [written(row, self.processor) for row in examples]
        prompts = self.processor(
            images=[row["images"] for row in self.with_images(examples)],
            text=[text.prompt for text in texts],
            padding=True,
            padding_side="right",
            return_tensors="pt",
            add_special_tokens=False,
        )
        tokenizer = self.processor.tokenizer
        responses = self.responses(texts, examples)
        of_responses = [
            tokenizer(response.text, add_special_tokens=False)["input_ids"] if response.text else []
            for response in responses
        ]
        rows = len(examples)
        slots = len(responses) // rows
        response_ids = _pad(of_responses, tokenizer.pad_token_id)
        response_mask = _pad([[1] * len(ids) for ids in of_responses], 0)
        full_mask = prompts["attention_mask"]
        prompt_ids, prompt_mask, last = split_last_token(
            prompts["input_ids"], full_mask, tokenizer.pad_token_id
        )
        heads = last.repeat(slots, 1)
        completion_mask = torch.cat((torch.zeros_like(heads), response_mask), dim=1)
        batch = {
            "input_ids": torch.cat((heads, response_ids), dim=1),
            "attention_mask": torch.cat((full_mask.repeat(slots, 1), response_mask), dim=1),
            "completion_mask": completion_mask,
            "prompt_ids": prompt_ids,
            "prompt_mask": prompt_mask,
            "prompt_mm_token_type_ids": prompts["mm_token_type_ids"][:, :-1] * prompt_mask.bool(),
            "widths": tuple(
                1 + max(map(len, of_responses[slot * rows : (slot + 1) * rows]))
                for slot in range(slots)
            ),
            "pixel_values": prompts["pixel_values"],
            "image_grid_thw": prompts["image_grid_thw"],
            "images": torch.tensor([len(example["image_paths"]) for example in examples]),
        }
        places = torch.tensor(
            [
                [chosen * rows + number, (len(example["chosen"]) + rejected) * rows + number]
                for number, example in enumerate(examples)
                for chosen, rejected in example["pairs"]
            ]
        )
        return self.with_masks(batch, examples, responses, places)

    def responses(self, texts: Sequence[Written], examples: Sequence[Row]) -> list[Response]:
        of_rows = [[*text.chosen, *text.rejected] for text in texts]
        slots = max(map(len, of_rows))
        filled = [of_row + [_NO_RESPONSE] * (slots - len(of_row)) for of_row in of_rows]
        return [of_row[slot] for slot in range(slots) for of_row in filled]


def written(row: Row, processor: Any) -> Written:
    """A row of `groups` as the chat template writes it."""
    contents = [*row["chosen"], *row["rejected"]]
    prompt = without_null_keys(row["prompt"])
    images = [None] * len(row["image_paths"])
    prompts: list[str] = []
    whole: list[str] = []
    # Two at a time, since TRL's function takes pairs.
    for first in range(0, len(contents), 2):
        both = contents[first : first + 2]
        chosen, rejected = ([{"role": "assistant", "content": both[n]}] for n in (0, -1))
        pair = {"prompt": prompt, "images": images, "chosen": chosen, "rejected": rejected}
        text = apply_template(pair, processor)
        prompts.append(text["prompt"])
        whole += [text["prompt"] + text[side] for side in SIDES][: len(both)]
    # Where a template writes something before some responses, TRL's function takes it from them.
    shared = commonprefix(prompts)  # noqa: RUF071
    texts = [text[len(shared) :] for text in whole]
    responses = list(map(Response, contents, texts, digests_of(row)))
    count = len(row["chosen"])
    return Written(shared, responses[:count], responses[count:])


def apply_template(row: dict[str, Any], processor: Any) -> dict[str, str]:
    """Prompt, chosen and rejected as the chat template writes them, by TRL's own functions."""
    messages = {
        "prompt": prepare_multimodal_messages(row["prompt"], images=row["images"]),
        "chosen": prepare_multimodal_messages(row["chosen"]),
        "rejected": prepare_multimodal_messages(row["rejected"]),
    }
    return apply_chat_template(messages, processor)


def keep_first_rows(batch: dict[str, Any], count: int) -> dict[str, Any]:
    """A batch of either collator, cut to its first `count` rows, their pairs and images."""
    pairs = batch["pairs"]
    kept_pairs = int((pairs["row"] < count).sum())
    # A shared prompt is in the batch once, and a prompt of stock rows for each pair.
    prompts = len(batch["images"])
    kept = count if "prompt_ids" in batch else kept_pairs
    grids = batch["image_grid_thw"].split(int(batch["images"].sum()))
    kept_images = int(batch["images"][:kept].sum())
    kept_patches = [int(grid[:kept_images].prod(dim=1).sum()) for grid in grids]
    patches = batch["pixel_values"].split([int(grid.prod(dim=1).sum()) for grid in grids])

    def cut(value: Tensor, whole: int, first: int) -> Tensor:
        return torch.cat([part[:first] for part in value.split(whole)])

    others = {
        name: cut(value, prompts, kept) if isinstance(value, Tensor) else value
        for name, value in batch.items()
        if name not in ("pixel_values", "image_grid_thw", "pairs", "compared_mask")
    }
    if "compared_mask" in batch:
        others["compared_mask"] = cut(batch["compared_mask"], len(pairs["row"]), kept_pairs)
    places = pairs["responses"]
    places = places // prompts * kept + places % prompts
    pairs = pairs | {"responses": places}
    return others | {
        "pixel_values": torch.cat(
            [part[:number] for part, number in zip(patches, kept_patches, strict=True)]
        ),
        "image_grid_thw": torch.cat([grid[:kept_images] for grid in grids]),
        "pairs": {name: value[:kept_pairs] for name, value in pairs.items()},
    }


def _pad(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    return pad_sequence(
        [torch.tensor(row, dtype=torch.long) for row in rows],
        batch_first=True,
        padding_value=value,
    )
