"""The tokens of answer blocks: in both layouts of a batch, and where there are none to find."""

from pathlib import Path
from typing import Any

import pytest
import torch
from cot_reward.dpo.answer_tokens import answer_mask
from cot_reward.dpo.collator import PairCollator, SharedPrefixCollator
from cot_reward.dpo.pairs import load_pairs
from helpers.dpo import FORM, row, varied, write
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoProcessor, PreTrainedTokenizerFast

BLOCK = "<answer>Image {} is better</answer>"


@pytest.fixture(scope="module")
def processor(base: Path) -> Any:
    return AutoProcessor.from_pretrained(base)


@pytest.mark.parametrize("collator", [PairCollator, SharedPrefixCollator])
def test_the_tokens_of_the_answer_are_found_in_both_layouts(
    processor: Any, folder: Path, tmp_path: Path, collator: type[PairCollator]
) -> None:
    """Three pairs; a text of the second one has no answer that could be read."""
    rows = varied(3, images=(2, 1, 3), form=FORM)
    rows[1]["rejected"] = "Image 1 is better. <answer>Image 1 is better</answer>"
    path = write(tmp_path / "rows.jsonl", rows)
    batch = collator(processor, image_folder=folder)(list(load_pairs(path, str(folder)).dataset()))
    mask = batch["answer_mask"].bool()
    assert mask.shape == batch["completion_mask"].shape
    assert not (mask & ~batch["completion_mask"].bool()).any()
    found = [
        processor.tokenizer.decode(ids[of_row])
        for ids, of_row in zip(batch["input_ids"], mask, strict=True)
    ]
    assert found == [BLOCK.format(answer) for answer in (1, 2, 1, 2)] + ["", BLOCK.format(2)]


def test_a_template_may_write_something_around_a_text(processor: Any) -> None:
    tokenizer = processor.tokenizer
    content = row([])["chosen"]
    text = f"<answer>of the template</answer>{content}<|im_end|>\n"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    (mask,) = answer_mask([content], [text], torch.tensor([[0, *[1] * len(ids), 0]]), tokenizer)
    chosen = [token for token, inside in zip(ids, mask[1:-1].tolist(), strict=True) if inside]
    assert tokenizer.decode(chosen) == BLOCK.format(1)
    assert mask[0] == mask[-1] == 0


def test_a_token_with_a_part_of_the_block_is_one_of_its_tokens() -> None:
    words = Tokenizer(WordLevel({"?": 0}, unk_token="?"))
    words.pre_tokenizer = WhitespaceSplit()
    text = "<think> x </think><answer>Image 1 is better</answer> "
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
    (mask,) = answer_mask([text], [text], torch.ones(1, 6, dtype=torch.long), tokenizer)
    assert mask.tolist() == [0, 0, 1, 1, 1, 1]


def test_other_tokens_than_the_tokenizers_are_not_guessed(processor: Any) -> None:
    content = row([])["chosen"]
    length = len(processor.tokenizer(content, add_special_tokens=False)["input_ids"])
    assert answer_mask([content], [content], torch.ones(1, length), processor.tokenizer).any()
    longer = torch.ones(1, length + 1)
    assert not answer_mask([content], [content], longer, processor.tokenizer).any()
    # A template that rewrites a text leaves nothing to find.
    rewritten = [content.replace("<answer>", "< answer>")]
    assert not answer_mask([content], rewritten, longer, processor.tokenizer).any()
