"""A tiny Qwen3.5 behind scripts/serve.sh: vLLM's CPU build computes its delta nets in bfloat16."""

from pathlib import Path

import pytest
from cot_reward.errors import UserError
from helpers.client_world import World
from helpers.models import save_untrained_base
from helpers.serving import RealServer, needs_vllm

pytestmark = [pytest.mark.slow, needs_vllm]


def test_it_answers_about_two_images(tmp_path: Path) -> None:
    model = save_untrained_base(tmp_path / "model", family="qwen3_5")
    _open_think(model)
    server = RealServer(model, tmp_path / "media")
    server.start()
    try:
        world = World(tmp_path, server)
        # Of random weights no answer can be read.
        assert world.call("--max-tokens", 8, "--num-samples", 2, "--min-parsed", 0) == 0
        assert world.summary["account"]["judged"] == 3 * 2 * 2
        assert {row["finish_reason"] for row in world.judged} <= {"length", "stop"}
        _check_forced_forms(world)
    finally:
        server.stop()


def _open_think(model: Path) -> None:
    """As published models of the family have it, unless enable_thinking is false."""
    path = model / "chat_template.jinja"
    template, opening = path.read_text(), "<|im_start|>assistant\n"
    head, found, tail = template.rpartition(opening)
    assert found, template
    opened = "{% if enable_thinking is not defined or enable_thinking %}<think>\n{% endif %}"
    path.write_text(head + opening + opened + tail)


def _check_forced_forms(world: World) -> None:
    """Where the chat template has opened <think>, no second one stands in a text."""
    flags = ["--max-tokens", 48, "--num-samples", 2, "--min-parsed", 0, "--structured-output", "on"]
    world.out = world.out.with_name("opened")
    assert world.call(*flags, "--out", world.out) == 0
    for row in world.judged:
        text = row["conversations"][1]["value"]
        assert row["answer"] or row["finish_reason"] == "length"
        # The client puts the opening back as soon as the block is closed.
        assert text.count("<think>") == ("</think>" in text)
    world.out = world.out.with_name("answer")
    flags += ["--form", "answer", "--out", world.out]
    with pytest.raises(UserError, match="the chat template opens <think>"):
        world.call(*flags)
    assert world.call(*flags, "--chat-template-kwargs", '{"enable_thinking": false}') == 0
    assert all(row["answer"] or row["finish_reason"] == "length" for row in world.judged)
