"""Shared prompts against TRL's own trainer: the same numbers, in fp32, on random models."""

from pathlib import Path
from typing import Any

import pytest
import torch
from cot_reward.dpo import shared_prefix
from cot_reward.dpo.trainer import LogProbRecorder
from datasets import Dataset, Image, Sequence
from helpers.dpo import FORM, row, trainer_for, varied, write
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
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
# Gradient checkpointing, adapter, frozen vision, model.
CASES = [
    ("qwen2_5_vl", ()),
    ("qwen2_5_vl", ("--gradient_checkpointing", "--freeze_vision_tower")),
    ("qwen2_5_vl", ("--use_peft",)),
    ("qwen2_5_vl", ("--use_peft", "--gradient_checkpointing", "--freeze_vision_tower")),
    ("qwen2_vl", ()),
    ("qwen2_vl", ("--use_peft", "--gradient_checkpointing")),
    ("qwen3_vl", ()),
    ("qwen3_vl", ("--gradient_checkpointing", "--freeze_vision_tower")),
    ("qwen3_vl", ("--use_peft", "--gradient_checkpointing")),
    ("qwen3_5", ()),
    ("qwen3_5", ("--gradient_checkpointing", "--freeze_vision_tower")),
    ("qwen3_5", ("--use_peft", "--gradient_checkpointing")),
]


def stock_trainer(ours: Any, parsed: Any, folder: Path) -> DPOTrainer:
    """TRL's trainer with TRL's collator on the same rows, pictures as data sets hold them."""
    rows = ours.train_dataset.select_columns(["prompt", "chosen", "rejected", "image_paths"])
    listed = rows.to_list()
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
    model = LogProbRecorder(trainer.model)
    loss = trainer._compute_loss(model, trainer._prepare_inputs(batch), return_outputs=False)
    loss.backward()
    mask = batch["completion_mask"][:, 1:].bool()
    logged: dict[str, float] = {}
    trainer.log(logged)
    return {
        "loss": loss.item(),
        "tokens": model.log_probs[mask],
        "sums": torch.stack([one[m].sum() for one, m in zip(model.log_probs, mask, strict=True)]),
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


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "flags"), CASES)
def test_every_loss_is_trls(
    bases: dict[str, Path], folder: Path, tmp_path: Path, kind: str, flags: tuple[str, ...]
) -> None:
    pairs = write(tmp_path / "pairs.jsonl", varied(6, images=(2, 1, 3), longest=3))
    ours, parsed = trainer_for(bases[kind], folder, pairs, tmp_path / "ours", *flags)
    stock = stock_trainer(ours, parsed, folder)
    same_weights(ours, stock)
    for number, loss in enumerate(LOSSES):
        chosen = [[0, 1, 2], [3], [4, 5]][number % 3]
        settings = {
            "loss_types": [loss],
            "loss_weights": [1.0],
            "beta": 0.1,
            "label_smoothing": 0.1 if loss in ("exo_pair", "robust") else 0.0,
        }
        theirs = result(
            stock, stock.data_collator([stock.train_dataset[i] for i in chosen]), **settings
        )
        own = result(ours, ours.data_collator([ours.train_dataset[i] for i in chosen]), **settings)
        assert theirs["metrics"]["rewards/margins"] != 0
        assert_equal(own, theirs)


def test_long_texts_and_a_live_reference_with_a_backbone_in_double_precision(
    bases: dict[str, Path], folder: Path, tmp_path: Path
) -> None:
    """TRL's head works in fp32 all the same, as do norms; gradients come a tenth as near."""
    pairs = write(tmp_path / "pairs.jsonl", varied(3, longest=60, form=FORM))
    flags = ("--reference_cache", "false")
    ours, parsed = trainer_for(bases["qwen2_5_vl"], folder, pairs, tmp_path / "ours", *flags)
    assert "ref_chosen_logps" not in ours.train_dataset.column_names
    stock = stock_trainer(ours, parsed, folder)
    same_weights(ours, stock)
    for trainer in (ours, stock):
        trainer.model.double()
        trainer.ref_model.double()
    own, theirs = (
        result(
            trainer,
            trainer.data_collator(list(trainer.train_dataset)),
            ld_alpha=0.5,
            loss_types=["sigmoid", "sft"],
            loss_weights=[1.0, 5.0],
        )
        for trainer in (ours, stock)
    )
    assert own["loss"] == pytest.approx(theirs["loss"], rel=1e-6)
    torch.testing.assert_close(own["tokens"], theirs["tokens"], rtol=0, atol=1e-5)
    for name, gradient in theirs["gradients"].items():
        difference = (own["gradients"][name] - gradient).abs().max()
        assert difference <= 1e-4 * gradient.abs().max() + 1e-7, name
    for key, value in theirs["metrics"].items():
        assert own["metrics"][key] == pytest.approx(value, rel=1e-4, abs=1e-5), key


def test_logits_are_those_of_the_fused_head(
    bases: dict[str, Path], folder: Path, tmp_path: Path
) -> None:
    """Without TRL's head, as `compute_metrics` asks for them, in TRL's order of rows."""
    pairs = write(tmp_path / "pairs.jsonl", varied(2, form=FORM))
    ours, _ = trainer_for(bases["qwen2_5_vl"], folder, pairs, tmp_path / "ours")
    batch = ours.data_collator(list(ours.train_dataset))
    own = {k: v for k, v in batch.items() if k not in ("pairs", "completion_mask")}
    own = {k: v for k, v in own.items() if not k.startswith("ref_")}
    with torch.no_grad():
        logits = ours.model(**own).logits[:, :-1]
        labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
        fused = ours.model(**own, labels=labels, fused_lm_head=True).log_probs
    real = batch["completion_mask"][:, 1:].bool()
    chosen = logits.log_softmax(-1).gather(2, batch["input_ids"][:, 1:, None])[..., 0]
    torch.testing.assert_close(chosen[real], fused[real], rtol=0, atol=1e-5)


def test_the_vision_tower_runs_once_a_prompt(
    bases: dict[str, Path], folder: Path, tmp_path: Path
) -> None:
    """And without a graph where it is frozen, adapters and checkpointing notwithstanding."""
    pairs = write(tmp_path / "pairs.jsonl", varied(2))
    flags = ("--use_peft", "--gradient_checkpointing", "--freeze_vision_tower")
    flags += ("--freeze_multi_modal_projector",)
    ours, _ = trainer_for(bases["qwen2_5_vl"], folder, pairs, tmp_path / "ours", *flags)
    batch = ours._prepare_inputs(ours.data_collator(list(ours.train_dataset)))
    seen = []
    tower = ours.model.get_base_model().model.visual
    tower.register_forward_hook(lambda _, given, out: seen.append(out.pooler_output))
    ours.model.train()
    ours.compute_loss(ours.model, batch).backward()
    (patches,) = seen
    assert len(patches) == batch["image_grid_thw"].prod(dim=1).sum() // 4
    assert len(batch["image_grid_thw"]) == 4
    assert not patches.requires_grad


def test_other_models_and_settings_fall_back_to_stock_trl_with_one_line(
    bases: dict[str, Path], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = AutoConfig.from_pretrained(bases["qwen2_5_vl"])
    assert not shared_prefix.unsupported(config)
    assert not shared_prefix.unsupported(config, "sdpa")
    config.get_text_config().layer_types = ["sliding_attention", "full_attention"]
    assert "sliding-window" in shared_prefix.unsupported(config)
    assert "llava" in shared_prefix.unsupported(AutoConfig.for_model("llava"))

    pairs = write(tmp_path / "pairs.jsonl", varied(4, images=(2, 1)))
    flags = ["--attn_implementation", "eager"]
    ours, _ = trainer_for(bases["qwen2_5_vl"], folder, pairs, tmp_path / "ours", *flags)
    (line,) = [
        line for line in capsys.readouterr().err.splitlines() if line.startswith("stock TRL")
    ]
    assert "eager" in line
    # Reference log-probs are cached all the same, and they are those of a live reference.
    assert ours.ref_model is None
    assert ours.reference_counts["computed"] == 4
    flags += ["--reference_cache", "false"]
    live, _ = trainer_for(bases["qwen2_5_vl"], folder, pairs, tmp_path / "live", *flags)
    assert live.ref_model is not None
    losses = []
    for trainer in (ours, live):
        batch = trainer.data_collator(list(trainer.train_dataset))
        assert "prompt_ids" not in batch
        assert len(batch["image_grid_thw"]) == 2 * 6
        with torch.no_grad():
            for parameter in trainer.model.parameters():
                parameter += 0.02 * torch.randn(
                    parameter.shape, generator=torch.Generator().manual_seed(len(parameter.shape))
                )
        losses.append(trainer.compute_loss(trainer.model, trainer._prepare_inputs(batch)).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0] > 0


def test_generation_with_an_attached_model_is_unchanged(
    bases: dict[str, Path], folder: Path, tmp_path: Path
) -> None:
    pairs = write(tmp_path / "pairs.jsonl", [row(["0.png", "2.png"])])
    ours, _ = trainer_for(bases["qwen2_5_vl"], folder, pairs, tmp_path / "ours")
    batch = ours.data_collator(list(ours.train_dataset))
    prompt = torch.cat((batch["prompt_ids"], batch["input_ids"][:1, :1]), dim=1)
    inputs = {
        "input_ids": prompt,
        "attention_mask": torch.ones_like(prompt),
        "mm_token_type_ids": (prompt == ours.model.config.image_token_id).int(),
        "pixel_values": batch["pixel_values"],
        "image_grid_thw": batch["image_grid_thw"],
    }
    plain = AutoModelForImageTextToText.from_pretrained(bases["qwen2_5_vl"], dtype=torch.float32)
    generated = [
        model.eval().generate(**inputs, max_new_tokens=12, do_sample=False)
        for model in (ours.model, plain)
    ]
    assert torch.equal(*generated)
