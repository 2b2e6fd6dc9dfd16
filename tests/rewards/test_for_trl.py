"""The reward for TRL, in TRL's own trainer with a tiny text model that writes what is drawn."""

import asyncio
import functools
import json
import zlib

import pytest
from datasets import Dataset
from helpers.environments import REPO
from helpers.rewards import load_example
from helpers.server import MockServer
from helpers.serving import RealServer, needs_vllm
from helpers.texts import cot
from PIL import Image


@pytest.fixture
def example(monkeypatch):
    with MockServer() as server:
        monkeypatch.setenv("REWARD_URL", server.url)
        monkeypatch.setenv("REWARD_TASK", "image_generation")
        module = load_example("for_trl")
        module.server = server
        yield module
        module.MODEL.close()


def paint(completion):
    """A picture whose colour depends on the text alone."""
    text = completion if isinstance(completion, str) else completion[-1]["content"]
    return Image.new("RGB", (32, 32), f"#{zlib.crc32(text.encode()) & 0xFFFFFF:06x}")


def rewards(example, prompts, completions, **columns):
    call = example.win_rate(prompts=prompts, completions=completions, draw=paint, **columns)
    return asyncio.run(call)


def test_rewards_are_win_rates_within_the_group_of_a_prompt(example):
    # The server always prefers the first: both orders cancel out, whoever is compared.
    example.server.configure(faults=[{"kind": "text", "text": cot(), "reason": "stop"}])
    prompts = ["a cat", "a dog", "a cat", "a dog"]
    assert rewards(example, prompts, ["w", "x", "y", "z"]) == [0.5] * 4
    asked = {entry["caption"] for entry in example.server.log()}
    assert asked == {"a cat", "a dog"}
    # Two orders of one pair for each prompt, and nothing across prompts.
    assert len(example.server.log()) == 4


def test_an_empty_completion_wins_against_nothing(example, monkeypatch):
    example.server.configure()
    answers = example.RewardModel(example.server.url, task="image_understanding")
    monkeypatch.setattr(example, "MODEL", answers)
    pictures = [[Image.new("RGB", (32, 32))]] * 3
    call = example.win_rate(["a cat"] * 3, [" ", "x", "y"], images=pictures)
    found = asyncio.run(call)
    answers.close()
    assert found[0] == 0
    assert found[1] + found[2] == 1


def test_conversations_are_read(example):
    example.server.configure()
    prompt = [{"role": "user", "content": [{"type": "text", "text": "a cat"}]}]
    completions = [[{"role": "assistant", "content": text}] for text in ("w", "x", "y")]
    found = rewards(example, [prompt] * 3, completions)
    assert len(found) == 3
    assert all(0 <= reward <= 1 for reward in found)


def test_conversations_of_one_last_turn_are_several_groups(example):
    example.server.configure()
    last = {"role": "user", "content": "go on"}
    prompts = [[{"role": "user", "content": first}, last] for first in "aabb"]
    rewards(example, prompts, ["w", "x", "y", "z"])
    # Two orders of one pair for each of the two.
    assert len(example.server.log()) == 4


def test_a_judge_that_fails_is_counted_and_does_not_pass_for_a_reward(example):
    shares = []
    example.server.configure(faults=[{"caption": "a dog", "kind": "text", "text": "nothing"}])
    prompts = ["a cat"] * 4 + ["a dog"] * 2
    found = rewards(
        example, prompts, list("uvwxyz"), log_metric=lambda name, value: shares.append(value)
    )
    assert found[4:] == [0.5, 0.5]
    # Of six pairs and one.
    assert shares[0] >= 1 / 7
    with pytest.raises(RuntimeError, match="1 of 1 comparisons failed"):
        rewards(example, ["a dog"] * 2, ["y", "z"])


@pytest.mark.slow
def test_trl_trains_with_it(example, tmp_path):
    from cot_reward.demo import tiny_qwen
    from transformers import Qwen2Config, Qwen2ForCausalLM
    from trl import GRPOConfig, GRPOTrainer

    example.server.configure()
    tokenizer = tiny_qwen.build_tokenizer("Judge. Text Caption: [{caption}]", 400, "qwen2_5_vl")
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    trainer = GRPOTrainer(
        Qwen2ForCausalLM(config),
        reward_funcs=functools.partial(example.win_rate, draw=paint),
        args=GRPOConfig(
            str(tmp_path),
            per_device_train_batch_size=4,
            num_generations=4,
            max_steps=2,
            max_completion_length=6,
            learning_rate=1e-2,
            use_cpu=True,
            bf16=False,
            report_to="none",
            logging_steps=1,
            save_strategy="no",
        ),
        train_dataset=Dataset.from_list([{"prompt": "a cat"}, {"prompt": "a dog"}]),
        processing_class=tokenizer,
    )
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "reward" in entry]
    assert len(logged) == 2
    assert all(0 <= entry["reward"] <= 1 for entry in logged)
    assert any(entry["reward_std"] > 0 for entry in logged)
    assert all("reward_failed" in entry for entry in logged)
    # All pairs of four in both orders, twice.
    assert 0 < len(example.server.log()) <= 24


DEMO = REPO / "runs/demo/seed0/stage3"
PAIRS = 60


@pytest.mark.slow
@needs_vllm
@pytest.mark.skipif(not DEMO.exists(), reason="no model of the demo: make demo")
def test_the_demos_model_rewards_the_better_picture(monkeypatch, tmp_path):
    media = REPO / "dataset/demo/images"
    rows = json.loads((REPO / "dataset/demo/heldout.json").read_text())[:PAIRS]
    server = RealServer(DEMO, media, log=tmp_path / "serve.log")
    server.start()
    try:
        monkeypatch.setenv("REWARD_URL", server.url)
        monkeypatch.setenv("REWARD_TASK", "image_generation")
        monkeypatch.setenv("REWARD_TEMPLATE", str(DEMO / "template.txt"))
        example = load_example("for_trl")
        # A policy whose completions are the names of pictures.
        found = asyncio.run(
            example.win_rate(
                [row["prompt"] for row in rows for _ in range(2)],
                [f"{number} {name}" for number, row in enumerate(rows) for name in row["images"]],
                draw=lambda text: (media / text.split()[1]).read_bytes(),
            )
        )
        example.MODEL.close()
    finally:
        server.stop()
    better = [int(row["conversations"][1]["value"].split()[1]) for row in rows]
    won = [found[2 * number + label - 1] for number, label in enumerate(better)]
    # Chance is 0.5; prompts that several pairs share make groups of more than two.
    assert sum(won) / len(won) > 0.6
