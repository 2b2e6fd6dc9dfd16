"""Flags that exclude each other, or that would be lost, are refused before anything is read."""

import pytest
from cot_reward.errors import UserError
from cot_reward.grpo import trl_settings

REQUIRED = "--data_path x.jsonl --model_name_or_path x --use_cpu --bf16 false --report_to none "


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--loss_type dapoo", "--loss_type dapoo: not one of grpo, dr_grpo, dapo"),
        ("--loss_type drgrpo", "Did you mean 'dr_grpo'?"),
        ("--scale_rewards groups", "Did you mean 'group'?"),
        ("--importance_sampling_level sentence", "not one of token, sequence"),
        ("--multi_objective_aggregation sum", "not one of sum_then_normalize"),
        ("--max_completion_length 0", "--max_completion_length 0: must be at least 1"),
        ("--temperature 0", "equal texts have equal rewards"),
        ("--top_p 1.5", "--top_p 1.5: must be above 0 and at most 1"),
        ("--beta=-0.1", "--beta -0.1: must not be below 0"),
        ("--num_iterations 0", "--num_iterations 0: must be at least 1"),
        ("--reward_weights 1 1", "the weights follow from --reward_incoherent and --reward_format"),
        ("--remove_unused_columns true", "the judge needs the columns"),
        ("--use_transformers_continuous_batching true", "it is for text models"),
        ("--neftune_noise_alpha 5", "sampled and scored with noise"),
        ("--num_generations 1", "at least 2 generations"),
        ("--num_generations 3", "must be divisible by num_generations"),
        ("--max_steps 0", "nothing would be trained"),
        ("--eval_strategy steps --eval_steps 5", "--eval_strategy steps needs --eval_data_path"),
        ("--overwrite_output_dir --resume_from_checkpoint true", "would remove what --resume"),
        ("--sync_ref_model", "--sync_ref_model needs a --beta above 0"),
        ("--sync_ref_model --beta 0.1 --use_peft", "does not go with --use_peft"),
        ("--ref_model_sync_steps 5", "--ref_model_sync_steps 5 is ignored without --sync_ref"),
        ("--vllm_mode serve", "--vllm_mode serve: not one of server, colocate. Did you mean 'ser"),
        ("--vllm_server_port 8001", "--vllm_server_port 8001 is ignored without --use_vllm"),
        ("--use_vllm --vllm_mode colocate --vllm_server_port 8001", "is for --vllm_mode server"),
        ("--use_vllm --vllm_mode server --vllm_max_model_length 9", "is for --vllm_mode colocate"),
        ("--use_vllm", "--use_vllm needs a GPU"),
        ("--use_vllm --load_in_4bit --use_peft", "--load_in_4bit does not go with --use_vllm"),
        ("--use_vllm --load_in_8bit --use_peft", "--load_in_8bit does not go with --use_vllm"),
        ("--load_in_4bit", "--load_in_4bit needs --use_peft"),
        ("--load_in_8bit --use_peft", "package bitsandbytes: make qlora installs it"),
        ('--model_init_kwargs {"quantization_config":{"load_in_4bit":true}}', "use --load_in_4bit"),
        ("--merge_adapter", "--merge_adapter needs --use_peft"),
        ("--attn_implementation spda", "--attn_implementation spda: not one of eager"),
        ("--report_to wandd", "--report_to wandd: nothing of this name"),
        ("--orders sometimes", "orders is 'sometimes'; it must be given, swapped or both"),
        ("--labels 0", "--labels 0: must be VALUE=1"),
        ("--min_parsed 2", "min_parsed is 2.0; it must be between 0 and 1"),
        ("--max_minutes 0", "max_minutes is 0.0; it must be above 0"),
        ("--limit 0", "limit is 0; it must be at least 1"),
        ("--reward_incoherent 2", "reward_incoherent is 2.0; it must be between 0"),
        ("--reward_format=-1", "reward_format is -1.0; it must not be below 0"),
        ("--reward_fromat 1", "unknown flag '--reward_fromat'. Did you mean '--reward_format'?"),
        ("--loss_weights 1", "unknown flag '--loss_weights'"),
    ],
)
def test_wrong_flags_are_one_sentence(flags: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        trl_settings.parse((REQUIRED + flags).split())
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_vllm_needs_its_package_also_for_a_server() -> None:
    flags = REQUIRED.replace("--use_cpu ", "") + "--use_vllm --vllm_mode server"
    with pytest.raises(UserError, match="--use_vllm needs the package vllm beside TRL"):
        trl_settings.parse(flags.split())


def test_good_flags_are_taken() -> None:
    given = "--data_path a.jsonl b.jsonl --scale_rewards none --labels 0=1 1=2 --max_minutes 2"
    settings, training, _ = trl_settings.parse((REQUIRED + given).split())
    assert settings.data_path == ["a.jsonl", "b.jsonl"]
    assert settings.asked_orders == ("given", "swapped")
    assert (training.scale_rewards, training.max_completion_length) == ("none", 2048)
    assert training.report_to == []
