"""Flags that exclude each other, or that would be lost, are refused before anything is read."""

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from cot_reward.dpo import trl_settings
from cot_reward.dpo.flag_checks import LOSSES, check
from cot_reward.errors import UserError
from cot_reward.training import flag_checks
from helpers.dpo import trainer_for

REQUIRED = "--data_path x.jsonl --model_name_or_path x --use_cpu --bf16 false --report_to none "


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        # losses
        ("--loss_type sigmod", "--loss_type sigmod: no such loss. Did you mean 'sigmoid'?"),
        ("--loss_type sigmoid stf", "--loss_type stf: no such loss. Did you mean 'sft'?"),
        ("--beta -0.1", "--beta -0.1: must be above 0"),
        ("--beta 0", "--beta 0.0: must be above 0"),
        ("--label_smoothing 0.1", "sigmoid would ignore it"),
        ("--loss_type ipo sft --label_smoothing 0.1", "ipo, sft would ignore it"),
        ("--loss_type robust --label_smoothing 0.5", "at least 0 and below 0.5"),
        ("--loss_type robust --label_smoothing -0.1", "at least 0 and below 0.5"),
        ("--loss_type exo_pair", "exo_pair needs a --label_smoothing above 0"),
        ("--use_weighting --loss_type sigmoid sft", "sft has no term of a single pair"),
        ("--use_weighting --loss_type aot", "aot has no term of a single pair"),
        ("--f_divergence_type forward", "Did you mean 'forward_kl'?"),
        ("--f_divergence_type forward_kl --loss_type apo_zero", "with the loss apo_zero"),
        ("--ld_alpha 1.5", "--ld_alpha 1.5: must be between 0 and 1"),
        ("--discopop_tau 0.1", "--discopop_tau 0.1 is ignored without --loss_type discopop"),
        ("--f_alpha_divergence_coef 1", "ignored without --f_divergence_type alpha_divergence"),
        ("--ref_model_sync_steps 5", "--ref_model_sync_steps 5 is ignored without --sync_ref"),
        ("--save_on_each_node", "--save_on_each_node: machines that share --output_dir"),
        # flags that nothing reads
        ("--pad_to_multiple_of 64", "--pad_to_multiple_of 64 has no effect here"),
        ("--pad_token <|endoftext|>", "--pad_token <|endoftext|> has no effect here"),
        ("--padding_free", "--padding_free True has no effect here"),
        ("--truncation_mode keep_end", "--truncation_mode keep_end has no effect here"),
        ("--label_smoothing_factor 0.1", "DPO has --label_smoothing"),
        ("--neftune_noise_alpha 5", "with different noise"),
        ("--train_sampling_strategy group_by_length", "use random or sequential"),
        # texts that the model writes in between
        ("--agreement_steps=-1", "--agreement_steps -1: must be at least 0 (0: never)"),
        ("--agreement_rows 0", "--agreement_rows 0: must be at least 1"),
        (
            "--agreement_steps 5 --fsdp full_shard",
            "--agreement_steps 5: no process has the whole model under FSDP",
        ),
        # lengths
        ("--per_device_train_batch_size 0", "--per_device_train_batch_size 0: must be at least 1"),
        ("--gradient_accumulation_steps 0", "--gradient_accumulation_steps 0: must be at least 1"),
        ("--max_steps 0", "nothing would be trained"),
        ("--num_train_epochs 0", "nothing would be trained"),
        ("--learning_rate=-1e-6", "--learning_rate -1e-06: must not be below 0"),
        # evaluation and saving
        ("--eval_strategy steps --eval_steps 5", "--eval_strategy steps needs --eval_data_path"),
        ("--load_best_model_at_end --save_strategy no", "--load_best_model_at_end needs --eval_d"),
        ("--save_strategy best", "--save_strategy best needs --eval_data_path"),
        ("--eval_on_start", "--eval_on_start needs --eval_data_path"),
        (
            "--load_best_model_at_end --save_strategy no --eval_data_path y.jsonl",
            "--load_best_model_at_end needs saved checkpoints",
        ),
        ("--overwrite_output_dir --resume_from_checkpoint true", "would remove what --resume"),
        # reference and model
        ("--precompute_ref_log_probs", "--reference_cache does it"),
        ("--sync_ref_model", "--reference_cache false"),
        ("--sync_ref_model --reference_cache false --use_peft", "does not go with --use_peft"),
        ("--merge_adapter", "--merge_adapter needs --use_peft"),
        ('--model_init_kwargs {"token":"hf_x"}', "as HF_TOKEN"),
        ("--load_in_4bit", "--load_in_4bit needs --use_peft"),
        ("--load_in_4bit --use_peft", "package bitsandbytes: make qlora installs it"),
        ("--load_in_8bit --use_peft", "package bitsandbytes: make qlora installs it"),
        ('--model_init_kwargs {"quantization_config":{"load_in_4bit":true}}', "use --load_in_4bit"),
        ("--attn_implementation spda", "--attn_implementation spda: not one of eager"),
        ("--attn_implementation flash_attention_2", "needs the package flash-attn"),
        ('--model_init_kwargs {"attn_implementation":"flash_attention_2"}', "flash-attn"),
        # packages
        ("--use_liger_kernel", "--use_liger_kernel needs the package liger-kernel"),
        ("--report_to wandd", "--report_to wandd: nothing of this name"),
        ("--report_to neptune", "--report_to neptune needs the package neptune"),
    ],
)  # fmt: skip
def test_wrong_flags_are_one_sentence(flags: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        trl_settings.parse((REQUIRED + flags).split())
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("stage", "refused"), [(2, False), (3, True)])
def test_texts_need_a_process_with_the_whole_model(stage: int, refused: bool) -> None:
    parsed = trl_settings.parse([*REQUIRED.split(), "--agreement_steps", "5"])
    parsed[1].deepspeed_plugin = SimpleNamespace(zero_stage=stage)
    message = "under DeepSpeed ZeRO-3, so that none can write texts"
    with pytest.raises(UserError, match=message) if refused else nullcontext():
        check(*parsed)


@pytest.mark.parametrize("flag", ["--load_in_4bit", "--load_in_8bit"])
@pytest.mark.parametrize("cpu", ["--use_cpu true", "--use_cpu false"])
def test_a_quantized_base_needs_a_gpu(monkeypatch: pytest.MonkeyPatch, flag: str, cpu: str) -> None:
    monkeypatch.setattr(flag_checks, "find_spec", lambda name: name)
    # A machine with a GPU, asked to train on the CPU; and one without.
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: cpu.endswith("true"))
    with pytest.raises(UserError, match=f"{flag} needs a GPU, and this process has none"):
        trl_settings.parse([*(REQUIRED + f"--use_peft {flag}").split(), *cpu.split()])


@pytest.mark.parametrize(
    "flags",
    [
        "--loss_type robust --label_smoothing 0.1",
        "--loss_type robust",
        "--loss_type exo_pair sft --label_smoothing 0.001",
        "--use_weighting --loss_type sigmoid",
        "--f_divergence_type alpha_divergence --f_alpha_divergence_coef 1 --loss_type ipo",
        "--loss_type discopop --discopop_tau 0.1",
        "--ld_alpha 0",
        "--sync_ref_model --reference_cache false --ref_model_sync_steps 5",
        "--truncation_mode keep_start --pad_to_multiple_of none",
        "--train_sampling_strategy sequential",
        "--max_steps 1 --num_train_epochs 0",
        "--eval_strategy steps --eval_steps 5 --eval_data_path y.jsonl",
        "--attn_implementation sdpa",
        "--attn_implementation kernels-community/flash-attn",
        "--report_to tensorboard",
        "--overwrite_output_dir --resume_from_checkpoint false",
    ],
)
def test_right_flags_pass(flags: str) -> None:
    trl_settings.parse((REQUIRED + flags).split())


@pytest.mark.parametrize("loss", LOSSES)
def test_trl_has_each_of_the_losses(
    base: Path, folder: Path, pairs: str, tmp_path: Path, loss: str
) -> None:
    """And with the flags that are let through each gives a loss that is finite."""
    smoothing = ["--label_smoothing", "0.1"] * (loss == "exo_pair")
    weighting = ["--use_weighting"] * (loss in ("sigmoid", "apo_zero"))
    flags = ["--loss_type", loss, "--loss_weights", "1", *smoothing, *weighting]
    trainer, _ = trainer_for(base, folder, pairs, tmp_path / "out", *flags)
    batch = trainer.data_collator([trainer.train_dataset[index] for index in (0, 1)])
    assert torch.isfinite(trainer.compute_loss(trainer.model, batch))
