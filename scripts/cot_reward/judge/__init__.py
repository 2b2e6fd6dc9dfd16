"""The judge: is an answer right, and does its own reasoning support it?"""

from cot_reward.judge.dimensions import read_dimensions
from cot_reward.judge.totals import has_unread_totals, totals_in
from cot_reward.judge.verdicts import (
    FINDINGS,
    TRUSTED,
    VERSION,
    answer_block,
    destination,
    judge,
)

__all__ = [
    "FINDINGS", "TRUSTED", "VERSION", "answer_block", "destination", "has_unread_totals", "judge",
    "read_dimensions", "totals_in",
]  # fmt: skip
