"""Shared prompts against TRL's own trainer: the same numbers, in fp32, on random models."""

from pathlib import Path

import pytest
import torch
from cot_reward.dpo import shared_prefix
from helpers.dpo import FORM, row, trainer_for, varied, write
from helpers.dpo_results import LOSSES, assert_equal, result, same_weights, stock_trainer
from transformers import AutoConfig, AutoModelForImageTextToText

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
    assert not ours.data_collator.reference
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
    ours_alone = ("pairs", "images", "completion_mask", "answer_mask", "ref_logps")
    own = {k: v for k, v in batch.items() if k not in ours_alone}
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
    assert ours.reference_counts["computed"] == 8
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
