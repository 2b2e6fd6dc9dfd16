"""VL-RewardBench: two answers to a question about an image; 1,250 items in three groups."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from cot_reward.evaluation.answers import Answers
from cot_reward.evaluation.benchmarks.form import Benchmark, Found, Official, medium_at, text_at
from cot_reward.evaluation.benchmarks.rules import by_groups

GROUPS = ("general", "hallucination", "reasoning")
# Beginnings of the ids. The others are of VLFeedback and WildVision.
_HALLUCINATION = ("RLAIF", "RLHF", "hallucination_pair")
_REASONING = ("mathverse", "mmmu")
# The better of two answers has rank 0.
_FIRST_IS_BETTER, _SECOND_IS_BETTER = [0, 1], [1, 0]


def group_of(name: str) -> str:
    """The group of an id, as the folders of the official scorer have it: 183, 749 and 318 items."""
    if name.startswith(_HALLUCINATION):
        return "hallucination"
    return "reasoning" if name.startswith(_REASONING) else "general"


def find(row: Mapping[str, Any], number: int) -> Found:
    name, answers = text_at(row, "id"), row.get("response")
    if not isinstance(answers, list) or len(answers) != 2:
        raise ValueError("'response' must be a list of two answers")
    ranking = row.get("human_ranking")
    if ranking not in (_FIRST_IS_BETTER, _SECOND_IS_BETTER):
        raise ValueError(f"'human_ranking' is {ranking!r:.60}; it must be [0, 1] or [1, 0]")
    better = 1 if ranking == _FIRST_IS_BETTER else 2
    image = medium_at(row, "image")
    # Ids come several times, with other questions or answers.
    return Found(
        f"{name} #{number}", group_of(name), better, text_at(row, "query"),
        (answers[0], answers[1]), (image,),
    )  # fmt: skip


def official(answers: Answers) -> Official:
    """A random order for each sample, majority of the samples, undecided items left out.

    An item of which any text has no answer is left out, too, as `filter_out_doesntMatch` of the
    official scorer does. The orders are drawn by a seed: the official ones have none.
    """
    picks = answers.asked(answers.picks)
    n, orders, samples = picks.shape
    drawn = np.random.default_rng(0).integers(0, orders, (n, 1, samples))
    votes = np.take_along_axis(picks, drawn, axis=1)[:, 0]
    for_truth = (votes == answers.truth[:, None]).sum(axis=1)
    against = (votes == 3 - answers.truth[:, None]).sum(axis=1)
    whole = (votes > 0).all(axis=1)
    right, wrong = for_truth > samples / 2, against > samples / 2
    decided = whole & (right | wrong)
    return by_groups(
        answers, right, decided, "a random order for each sample, majority, undecided left out",
        "items", GROUPS,
        {"left out (a text without an answer)": int((~whole).sum()),
         "left out (undecided)": int((whole & ~decided).sum())},
    )  # fmt: skip


VL_REWARDBENCH = Benchmark(
    "vl-rewardbench", "image_understanding", "MMInstruction/VL-RewardBench", {"test": 1250}, find,
    official, "cal.py and inference_hf.py of github.com/vl-rewardbench/VL_RewardBench",
    unseen="the rows themselves; columns, labels and groups are those of the official scripts",
)  # fmt: skip
