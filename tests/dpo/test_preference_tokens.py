"""DPO on the tokens that are wrong, against the loss as the log-probs of single tokens give it."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from cot_reward.dpo.preference_tokens import first_difference_mask, uncertain_mask
from helpers.dpo import row, trainer_for, write

# The totals of the text, and its answer; label 1.
COT = (
    "<think>\nTotal score:\nImage 1: {} points.\nImage 2: {} points.\n</think>\n"
    "<answer>Image {} is better</answer>"
)
RIGHT = COT.format(9, 4, 1)
REJECTED = [COT.format(3, 4, 2), COT.format(9, 4, 2), COT.format(4, 4, 2), "no block at all"]
# What is compared of RIGHT and of the first three of REJECTED.
COMPARED = [("9", "3"), ("1", "2"), ("9", "4")]


@pytest.fixture
def pairs(tmp_path: Path) -> str:
    texts = [{"chosen": RIGHT, "rejected": wrong} for wrong in REJECTED]
    rows = [row(["0.png", "1.png"]) | text for text in texts]
    return write(tmp_path / "pairs.jsonl", rows)


def moved_away(trainer: Any) -> None:
    """Move the policy away from its reference."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)


@pytest.mark.parametrize(
    "flags", [(), ("--reference_cache", "false"), ("--shared_prefix", "false")]
)
def test_only_the_first_difference_is_compared(
    base: Path, folder: Path, pairs: str, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    flags = ("--preference_tokens", "first_difference", *flags)
    trainer, _ = trainer_for(base, folder, pairs, tmp_path / "out", *flags)
    batch = trainer._prepare_inputs(trainer.data_collator(list(trainer.train_dataset)))
    kept = batch["compared_mask"][:, 1:]
    ids = batch["input_ids"][:, 1:]
    decode = trainer.processing_class.tokenizer.decode
    found = [
        decode(of_row[of_mask.bool()]).strip() for of_row, of_mask in zip(ids, kept, strict=True)
    ]
    assert list(zip(found[:3], found[4:7], strict=True)) == COMPARED
    # The last rejected text has nothing in common with its chosen one up to its own end.
    whole = batch["completion_mask"][:, 1:]
    assert kept[3].argmax() == whole[3].argmax()
    assert kept[7].argmax() == whole[7].argmax()
    assert found[7].startswith("no block")

    trainer.loss_types, trainer.loss_weights = ["sigmoid", "sft"], [1.0, 5.0]
    model = trainer.model.eval()
    known = {
        name: value
        for name, value in batch.items()
        if name
        not in ("pairs", "images", "completion_mask", "answer_mask", "compared_mask", "ref_logps")
    }
    mask = batch["completion_mask"]
    labels = batch["input_ids"].masked_fill(mask == 0, -100)

    def token_logps() -> torch.Tensor:
        with torch.no_grad():
            out = model(**known, labels=labels, fused_lm_head=True, use_cache=False)
        return out.log_probs[:, -kept.shape[1] :]

    before = token_logps()
    moved_away(trainer)
    after = token_logps()
    change = ((after - before) * kept).sum(dim=1)
    margins = change[:4] - change[4:]
    sft = -after[:4][mask[:4, 1:].bool()].mean().item()
    expected = -torch.nn.functional.logsigmoid(trainer.beta * margins).mean().item() + 5 * sft
    loss = trainer._compute_loss(trainer.model, batch, return_outputs=False)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    whole = (after - before).sum(dim=1)
    assert not torch.allclose(margins, whole[:4] - whole[4:], atol=1e-3)
    logged: dict[str, float] = {}
    trainer.model.train()
    trainer._compute_loss(trainer.model, batch, return_outputs=False)
    trainer.log(logged)
    assert logged["loss"] == pytest.approx(expected, rel=1e-4)
    assert logged["loss/sft"] == pytest.approx(sft, rel=1e-4)


def test_what_the_loss_does_not_compare_gets_no_gradient(
    base: Path, folder: Path, pairs: str, tmp_path: Path
) -> None:
    flags = ("--preference_tokens", "first_difference")
    trainer, _ = trainer_for(base, folder, pairs, tmp_path / "out", *flags)
    trainer.loss_types, trainer.loss_weights = ["sigmoid"], [1.0]
    batch = trainer._prepare_inputs(trainer.data_collator(list(trainer.train_dataset)))
    seen: list[torch.Tensor] = []
    forward = trainer.model.forward

    def kept(*args: Any, **named: Any) -> Any:
        outputs = forward(*args, **named)
        if outputs.log_probs.requires_grad:
            outputs.log_probs.retain_grad()
            seen.append(outputs.log_probs)
        return outputs

    trainer.model.forward = kept
    trainer._compute_loss(trainer.model, batch, return_outputs=False).backward()
    compared, mask = (batch[name][:, 1:] for name in ("compared_mask", "completion_mask"))
    gradient = seen[-1].grad[:, -mask.shape[1] :]
    assert (gradient[compared == 0] == 0).all()
    assert (gradient[compared == 1] != 0).all()


@pytest.mark.parametrize(
    ("chosen", "rejected", "expected"),
    [
        ([1, 2, 3, 4], [1, 5, 3, 4], ([2], [5])),
        ([1, 2, 2, 3, 4], [1, 5, 3, 6], ([2, 2], [5])),
        # A token more on one side: what the other one has there instead.
        ([1, 2, 3, 4], [1, 3, 4], ([2, 3], [3])),
        ([1, 3, 4], [1, 2, 3, 4], ([3], [2, 3])),
        # The end of one text: the other one goes on.
        ([1, 2], [1, 2, 3, 4], ([], [3, 4])),
        ([9], [8, 7], ([9], [8, 7])),
    ],
)
@pytest.mark.parametrize("offset", [0, 3])
def test_the_first_difference_ends_where_the_texts_agree_again(
    chosen: list[int], rejected: list[int], expected: Any, offset: int
) -> None:
    """Whatever precedes the texts in a row and pads them behind."""
    rows = [[0] * offset + text + [0] * (9 - len(text)) for text in (chosen, rejected)]
    mask = torch.tensor(
        [[0] * offset + [1] * len(t) + [0] * (9 - len(t)) for t in (chosen, rejected)]
    )
    ids, none = torch.tensor(rows), torch.zeros_like(mask)
    kept = first_difference_mask(ids, mask, none, [0])
    found = [of_row[of_mask.bool()].tolist() for of_row, of_mask in zip(ids, kept, strict=True)]
    assert tuple(found) == expected


def test_answers_are_compared_where_the_answer_alone_is_wrong() -> None:
    ids = torch.tensor([[1, 2, 7, 8, 9], [1, 3, 7, 8, 9], [1, 4, 7, 6, 9], [1, 5, 7, 6, 9]])
    mask = torch.ones_like(ids)
    answer = torch.tensor([[0, 0, 1, 1, 1]]).repeat(4, 1)
    kept = first_difference_mask(ids, mask, answer, [0, 1])
    assert [row.nonzero()[:, 0].tolist() for row in kept] == [[1], [3], [1], [3]]
    # Without an answer block in one of the texts, the whole texts are looked at.
    answer[3] = 0
    kept = first_difference_mask(ids, mask, answer, [0, 1])
    assert [row.nonzero()[:, 0].tolist() for row in kept] == [[1], [1], [1], [1]]


def test_what_the_reference_was_sure_of_is_not_compared() -> None:
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]).repeat(2, 1)
    answer = torch.tensor([[0, 0, 1, 1], [0, 1, 1, 0]]).repeat(2, 1)
    logps = torch.tensor([[-0.01, -2.0, -0.2, -0.05], [-0.5, -0.11, -0.10, -9.0]]).repeat(2, 1)
    kept = uncertain_mask(logps, mask, answer, torch.tensor([0, 0]))
    assert kept.tolist() == [[0, 1, 1, 0], [1, 1, 0, 0]] * 2
    kept = uncertain_mask(logps, mask, answer, torch.tensor([1, 1]))
    assert kept.tolist() == [[0, 0, 1, 0], [0, 1, 0, 0]] * 2
    # Without an answer block in one of the texts, the whole texts are looked at.
    answer[3] = 0
    kept = uncertain_mask(logps, mask, answer, torch.tensor([1, 1]))
    assert kept.tolist() == [[0, 0, 1, 0], [1, 1, 0, 0]] * 2


@pytest.mark.parametrize(
    "flags",
    [(), ("--reference_cache", "false"), ("--shared_prefix", "false"), ("--groups", "true")],
)
def test_uncertain_tokens_alone_move_the_loss(
    base: Path, folder: Path, pairs: str, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    """Against the log-probs of single tokens by the reference and by a model that has moved."""
    trainer, _ = trainer_for(
        base, folder, pairs, tmp_path / "out", "--preference_tokens", "uncertain", *flags
    )
    rows = list(trainer.train_dataset)
    batch = trainer._prepare_inputs(trainer.data_collator(rows))
    before = trainer.reference_logps(trainer.model, batch)
    moved_away(trainer)
    after = trainer.reference_logps(trainer.model, batch)
    labels, places = batch["pairs"], batch["pairs"]["responses"]
    expected = []
    for pair, only in enumerate(labels["answer_only"].tolist()):
        change = []
        for place in places[pair].tolist():
            part = batch["answer_mask" if only else "completion_mask"][place, 1:].bool()
            part &= before[place] < math.log(0.9)
            change.append((after - before)[place][part].sum())
        expected.append(-torch.nn.functional.logsigmoid(trainer.beta * (change[0] - change[1])))
    assert labels["answer_only"].any()
    trainer.loss_types, trainer.loss_weights = ["sigmoid"], [1.0]
    found = trainer._compute_loss(trainer.model, dict(batch), return_outputs=False)
    if "--reference_cache" not in flags:  # else the live reference has not moved, and is the base
        assert found.item() == pytest.approx(torch.stack(expected).mean().item(), rel=1e-5)
    assert found.item() != pytest.approx(math.log(2), rel=1e-3)
