"""The rewards of GRPO, from the judge's verdict alone.

UnifiedReward-Think's GRPO (github.com/CodeGoat24/UnifiedReward, train_grpo.py) adds two rewards of
1: the content of the first answer block equals the solution; and a think block is followed by an
answer block. It does not compare totals with the answer. Here a right answer has its reward only
when the reasoning does not speak against it, and "well-formed" is what the judge means by it: one
think block, one answer block with one of the two answer strings, nothing else, and a text that
ended by itself. `--reward_incoherent 1 --reward_format 1` gives the published sum.
"""

from cot_reward.judge import TRUSTED
from cot_reward.records import Verdict


def reward_of(verdict: Verdict, incoherent: float) -> float:
    """1 for a right and coherent text, `incoherent` for any other right one, else 0."""
    if verdict.verdict != "correct":
        return 0.0
    return 1.0 if verdict.coherence in TRUSTED else incoherent


def is_well_formed(verdict: Verdict) -> bool:
    """Whether the text has the asked form, right or wrong."""
    return verdict.verdict in ("correct", "incorrect")
