"""A tiny Qwen3.5 behind scripts/serve.sh: vLLM's CPU build computes its delta nets in bfloat16."""

from pathlib import Path

import pytest
from helpers.client_world import World
from helpers.models import save_untrained_base
from helpers.serving import RealServer, needs_vllm

pytestmark = [pytest.mark.slow, needs_vllm]


def test_it_answers_about_two_images(tmp_path: Path) -> None:
    model = save_untrained_base(tmp_path / "model", family="qwen3_5")
    server = RealServer(model, tmp_path / "media")
    server.start()
    try:
        world = World(tmp_path, server)
        # Of random weights no answer can be read.
        assert world.call("--max-tokens", 8, "--num-samples", 2, "--min-parsed", 0) == 0
    finally:
        server.stop()
    assert world.summary["account"]["judged"] == 3 * 2 * 2
    assert {row["finish_reason"] for row in world.judged} <= {"length", "stop"}
