"""VideoGen-RewardBench: two generated videos; people preferred one, or said they are the same."""

from collections.abc import Mapping
from typing import Any

from cot_reward.evaluation.answers import Answers
from cot_reward.evaluation.benchmarks.form import (
    TIE,
    Benchmark,
    Found,
    Official,
    meaning,
    medium_at,
    text_at,
)
from cot_reward.evaluation.benchmarks.rules import by_groups, first_answers


def find(row: Mapping[str, Any], number: int) -> Found:
    prompt = text_at(row, "prompt")
    better = meaning(row, "Overall", {"A": 1, "B": 2, "same": TIE})
    candidates = medium_at(row, "path_A"), medium_at(row, "path_B")
    return Found(str(number), "all", better, prompt, candidates)


def official(answers: Answers) -> Official:
    """The published order, one text, pairs that are the same left out ("without ties")."""
    picks = first_answers(answers)
    return by_groups(
        answers, picks == answers.truth, ~answers.is_tie,
        "the published order, one text, the same left out (accuracy without ties)",
        counts={"the same": int(answers.is_tie.sum()),
                "without an answer": int((picks <= 0).sum())},
    )  # fmt: skip


VIDEOGEN_REWARDBENCH = Benchmark(
    "videogen-rewardbench", "video_generation", "KwaiVGI/VideoGen-RewardBench", {"eval": 0}, find,
    official, "the paper of VideoReward (arXiv 2501.13918), and the script of UnifiedReward",
    files=("*.csv", "*.parquet"),
    unseen="the rows themselves, and their number; the score with ties of the paper is for models "
    "that give numbers, and is not computed",
)  # fmt: skip
