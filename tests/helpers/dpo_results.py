"""What a trainer of stage 3 makes of a batch, beside TRL's own trainer on the same rows."""

from pathlib import Path
from typing import Any

import pytest
import torch
from cot_reward.dpo.groups import conversational_pairs
from datasets import Dataset, Image, Sequence
from transformers import AutoProcessor
from trl import DPOConfig, DPOTrainer

LOSSES = [
    "sigmoid",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "robust",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "sft",
    "sigmoid_norm",
]


def stock_trainer(ours: Any, parsed: Any, folder: Path) -> DPOTrainer:
    """TRL's trainer with TRL's collator on the same rows, pictures as data sets hold them."""
    listed = [pair for one in ours.train_dataset for pair in conversational_pairs(one)]
    for one in listed:
        one["images"] = [str(folder / image) for image in one.pop("image_paths")]
    dataset = Dataset.from_list(listed).cast_column("images", Sequence(Image()))
    _, training, model = parsed
    arguments = DPOConfig(
        output_dir=training.output_dir,
        use_cpu=True,
        bf16=False,
        max_length=None,
        gradient_checkpointing=training.gradient_checkpointing,
        report_to="none",
        per_device_train_batch_size=2,
        beta=training.beta,
        max_steps=1,
    )
    return DPOTrainer(
        model=str(model.model_name_or_path),
        args=arguments,
        train_dataset=dataset,
        processing_class=AutoProcessor.from_pretrained(model.model_name_or_path),
        peft_config=ours.model.peft_config["default"] if model.use_peft else None,
    )


def same_weights(ours: Any, stock: Any) -> None:
    """Move the policies away from their references, both to the same place."""
    torch.manual_seed(3)
    theirs = dict(stock.model.named_parameters())
    with torch.no_grad():
        for name, parameter in ours.model.named_parameters():
            if parameter.requires_grad:
                parameter += 0.02 * torch.randn_like(parameter)
            theirs[name].copy_(parameter)
            theirs[name].requires_grad_(parameter.requires_grad)


def result(trainer: Any, batch: dict[str, Any], **settings: Any) -> dict[str, Any]:
    """Loss, log-probs, gradients and metrics of one batch."""
    for name, value in settings.items():
        setattr(trainer, name, value)
    trainer.model.train()
    trainer.model.zero_grad()
    trainer._metrics["train"].clear()
    seen: list[torch.Tensor] = []

    def model(**named: Any) -> Any:
        outputs = trainer.model(**named)
        seen.append(outputs.log_probs.detach())
        return outputs

    loss = trainer._compute_loss(model, trainer._prepare_inputs(batch), return_outputs=False)
    loss.backward()
    mask = batch["completion_mask"][:, 1:].bool()
    log_probs = seen[-1][:, -mask.shape[1] :]
    logged: dict[str, float] = {}
    trainer.log(logged)
    return {
        "loss": loss.item(),
        "tokens": log_probs[mask],
        "sums": torch.stack([one[m].sum() for one, m in zip(log_probs, mask, strict=True)]),
        "gradients": {
            name: parameter.grad.clone()
            for name, parameter in trainer.model.named_parameters()
            if parameter.grad is not None
        },
        "metrics": logged,
    }


def assert_equal(ours: dict[str, Any], stock: dict[str, Any]) -> None:
    torch.testing.assert_close(ours["tokens"], stock["tokens"], rtol=0, atol=1e-4)
    torch.testing.assert_close(ours["sums"], stock["sums"], rtol=0, atol=1e-3)
    assert ours["loss"] == pytest.approx(stock["loss"], rel=1e-5)
    assert ours["gradients"].keys() == stock["gradients"].keys()
    assert ours["gradients"]
    for name, gradient in stock["gradients"].items():
        # Of the tensor's largest element: single ones are sums that cancel.
        bound = 1e-3 * gradient.abs().max() + 1e-6
        assert (ours["gradients"][name] - gradient).abs().max() <= bound, name
    for key, value in stock["metrics"].items():
        assert ours["metrics"][key] == pytest.approx(value, rel=1e-4, abs=1e-5), key
