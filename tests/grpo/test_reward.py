"""What a text is worth."""

import pytest
from cot_reward.grpo.reward import is_well_formed, reward_of
from cot_reward.judge import judge
from cot_reward.tasks import TASKS
from helpers.texts import cot, thought

TASK = TASKS["image_generation"]


@pytest.mark.parametrize(
    ("text", "reason", "reward", "published", "formed"),
    [
        (cot(), "stop", 1.0, 1.0, True),
        (thought("Both are fine.", 1), "stop", 1.0, 1.0, True),
        (cot(answer=2), "stop", 0.0, 0.0, True),
        # Right, but its totals say the other one, nothing, or are no sums.
        (cot((1, 1, 1), (9, 9, 9)), "stop", 0.0, 1.0, True),
        (cot((8, 7, 9), (8, 7, 9)), "stop", 0.0, 1.0, True),
        (cot(totals=(30, 18)), "stop", 0.0, 1.0, True),
        # Right, but not in the asked form, or cut.
        (cot(), "length", 0.0, 0.0, False),
        ("Image 1 is better", "stop", 0.0, 0.0, False),
        ("<answer>Image 1 is better</answer>", "stop", 0.0, 0.0, False),
        (cot() + cot(), "stop", 0.0, 0.0, False),
        ("", "stop", 0.0, 0.0, False),
    ],
)
def test_rewards(text: str, reason: str, reward: float, published: float, formed: bool) -> None:
    verdict = judge(text, TASK, 1, reason)
    assert reward_of(verdict, 0.0) == reward
    assert reward_of(verdict, 1.0) == published
    assert is_well_formed(verdict) == formed
