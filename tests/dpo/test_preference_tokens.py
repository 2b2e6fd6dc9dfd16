"""DPO on the tokens that are wrong, against the loss as the log-probs of single tokens give it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.dpo import row, trainer_for, write

# The totals of the text, and its answer; label 1.
COT = (
    "<think>\nTotal score:\nImage 1: {} points.\nImage 2: {} points.\n</think>\n"
    "<answer>Image {} is better</answer>"
)
RIGHT = COT.format(9, 4, 1)
REJECTED = [COT.format(3, 4, 2), COT.format(9, 4, 2), COT.format(4, 4, 2), "no block at all"]
ALL, REASONING, ANSWER = range(3)
# The part of each pair of REJECTED that is compared.
EXPECTED = {
    "reasoning": [REASONING, REASONING, REASONING, REASONING],
    "wrong_part": [REASONING, ANSWER, REASONING, REASONING],
}


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


@pytest.mark.parametrize("flags", [(), ("--reference_cache", "false"), ("--shared_prefix", "false")])
@pytest.mark.parametrize("choice", list(EXPECTED))
def test_only_the_wrong_part_is_compared(
    base: Path, folder: Path, pairs: str, tmp_path: Path, choice: str, flags: tuple[str, ...]
) -> None:
    trainer, _ = trainer_for(
        base, folder, pairs, tmp_path / "out", "--preference_tokens", choice, *flags
    )
    trainer.loss_types, trainer.loss_weights = ["sigmoid", "sft"], [1.0, 5.0]
    batch = trainer._prepare_inputs(trainer.data_collator(list(trainer.train_dataset)))
    model = trainer.model.eval()
    known = {k: v for k, v in batch.items() if k not in ("pairs", "completion_mask", "answer_mask")}
    known = {k: v for k, v in known.items() if not k.startswith("ref_")}
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    answer, mask = (batch[name][:, 1:] for name in ("answer_mask", "completion_mask"))

    def token_logps() -> torch.Tensor:
        with torch.no_grad():
            out = model(**known, labels=labels, fused_lm_head=True, use_cache=False)
        return out.log_probs[:, -mask.shape[1] :]

    before = token_logps()
    moved_away(trainer)
    after = token_logps()
    # The chosen text has a block in every pair; one rejected text has none.
    assert answer.any(dim=1).tolist() == [True] * 4 + [True, True, True, False]
    kept = []
    for side in range(2):
        for pair, part in enumerate(EXPECTED[choice]):
            row_mask, row_answer = mask[4 * side + pair], answer[4 * side + pair]
            kept.append({REASONING: row_mask - row_answer, ANSWER: row_answer}[part])
    change = ((after - before) * torch.stack(kept)).sum(dim=1)
    margins = change[:4] - change[4:]
    chosen = mask[:4].bool()
    expected = -torch.nn.functional.logsigmoid(trainer.beta * margins).mean()
    expected += 5 * -after[:4][chosen].mean()
    loss = trainer._compute_loss(trainer.model, batch, return_outputs=False)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    whole = ((after - before) * mask).sum(dim=1)
    assert not torch.allclose(margins, whole[:4] - whole[4:], atol=1e-3)
    logged: dict[str, float] = {}
    trainer.model.train()
    trainer._compute_loss(trainer.model, batch, return_outputs=False)
    trainer.log(logged)
    assert logged["loss"] == pytest.approx(loss.item(), rel=1e-4)
    assert logged["loss/sft"] == pytest.approx(-after[:4][chosen].mean().item(), rel=1e-4)


def test_what_the_loss_does_not_compare_gets_no_gradient(
    base: Path, folder: Path, pairs: str, tmp_path: Path
) -> None:
    trainer, _ = trainer_for(
        base, folder, pairs, tmp_path / "out", "--preference_tokens", "reasoning"
    )
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
    answer, mask = (batch[name][:, 1:] for name in ("answer_mask", "completion_mask"))
    gradient = seen[-1].grad[:, -mask.shape[1] :]
    assert (gradient[answer.bool()] == 0).all()
    assert (gradient[(mask - answer).bool()] != 0).all()
