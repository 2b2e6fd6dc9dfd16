"""The reward for ms-swift, called as its trainer calls it (4.6.0, `compute_rewards_per_func`).

ms-swift is not in the test environment: its two names that the example imports stand in for it.
"""

import asyncio
import sys
from types import ModuleType

import pytest
from helpers.rewards import load_example
from helpers.server import MockServer
from helpers.service import Service, png


@pytest.fixture
def swift(monkeypatch):
    rewards = ModuleType("swift.rewards")
    rewards.AsyncORM, rewards.orms = type("AsyncORM", (), {}), {}
    monkeypatch.setitem(sys.modules, "swift", ModuleType("swift"))
    monkeypatch.setitem(sys.modules, "swift.rewards", rewards)
    return rewards


def test_rewards_are_win_rates_within_the_group_of_a_prompt(monkeypatch, swift, tmp_path):
    with (
        MockServer() as behind,
        Service(behind.url, "--task", "image_understanding") as service,
    ):
        monkeypatch.setenv("REWARD_SERVICE", service.url)
        load_example("for_ms_swift")
        behind.configure()
        (tmp_path / "a.png").write_bytes(png())
        prompts = ["p", "q", "p", "q", "p"]
        completions = ["one", "two", "three", "", "five"]
        messages = [
            [
                {"role": "user", "content": f"<image>question {prompt}"},
                {"role": "assistant", "content": completion},
            ]
            for prompt, completion in zip(prompts, completions, strict=True)
        ]
        images = [[{"bytes": None, "path": str(tmp_path / "a.png")}]] * 5
        reward = swift.orms["cot_reward"]()
        # With a placeholder of ms-swift's other columns.
        found = asyncio.run(
            reward(completions, trainer_state=None, messages=messages, prompt_id=prompts,
                   images=images, request_id=prompts)
        )  # fmt: skip
        assert len(found) == 5
        assert all(0 <= reward <= 1 for reward in found)
        # An empty answer cannot be compared, and the other one of its group wins against nothing.
        assert found[3] == 0
        assert sum(found[place] for place in (0, 2, 4)) == pytest.approx(1.5)
        # Three pairs of the first prompt in both orders, none of the second.
        assert len(behind.log()) == 6
        assert {len(entry["images"]) for entry in behind.log()} == {1}
