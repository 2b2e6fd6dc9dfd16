"""GenAI-Bench: votes of people on two generated images, videos, or edits of an image."""

from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import Any

import numpy as np

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
from cot_reward.store import dump

_VOTES = {"leftvote": 1, "rightvote": 2, "tievote": TIE, "bothbad_vote": TIE}
_ADDRESS = ("http://", "https://")


def _finder(noun: str, text: str, context: str = "") -> Callable[[Mapping[str, Any], int], Found]:
    """The items of a configuration whose candidates are `left_NOUN` and `right_NOUN`."""

    def find(row: Mapping[str, Any], number: int) -> Found:
        prompt = text_at(row, text)
        candidates = (
            _local(medium_at(row, f"left_{noun}")), _local(medium_at(row, f"right_{noun}")),
        )  # fmt: skip
        return Found(
            str(number), "all", meaning(row, "vote_type", _VOTES), prompt, candidates,
            (medium_at(row, context),) if context else (),
        )  # fmt: skip

    return find


def _local(medium: Any) -> Any:
    """The file of a video whose address stands in the row: its name, below the image root."""
    if isinstance(medium, str) and medium.startswith(_ADDRESS):
        return PurePosixPath(medium.partition("?")[0]).name
    return medium


def official(answers: Answers) -> Official:
    """The published order, one text; a tie counts, and an answer of one side is wrong there."""
    picks = first_answers(answers)
    right: np.ndarray = ~answers.is_tie & (picks == answers.truth)
    return by_groups(
        answers, right, np.ones(len(picks), dtype=bool),
        "the published order, one text, ties count and are wrong for a model that names one side",
        counts={"ties": int(answers.is_tie.sum()), "without an answer": int((picks <= 0).sum())},
    )  # fmt: skip


def predictions(answers: Answers) -> tuple[str, str]:
    """The file that the benchmark's show_results.py reads (results/TASK/MODEL/pairwise.json).

    Which kind of tie people voted for is not kept: such an answer is wrong in any case.
    """
    votes = {1: "[[A>B]]", 2: "[[B>A]]"}
    humans = {1: "leftvote", 2: "rightvote", TIE: "tie"}
    return "pairwise.json", dump([
        {"idx": number, "model_vote": votes.get(pick), "human_vote": humans[item.better],
         "correct": item.better != TIE and pick == item.better}
        for number, (item, pick) in enumerate(
            zip(answers.items, first_answers(answers).tolist(), strict=True)
        )
    ]) + "\n"  # fmt: skip


_SOURCE = "inference.py of github.com/TIGER-AI-Lab/GenAI-Bench (parse_response)"
_UNSEEN = (
    "the rows themselves; the columns are those of the official inference_configs.json. The number "
    "of rows of most splits is not known here, and not checked"
)
GENAI_BENCH = (
    Benchmark(
        "genai-bench-image", "image_generation", "TIGER-Lab/GenAI-Bench",
        {"test": 0, "test_v1": 0}, _finder("image", "prompt"), official, _SOURCE,
        "image_generation", predictions=predictions, unseen=_UNSEEN,
    ),
    Benchmark(
        "genai-bench-video", "video_generation", "TIGER-Lab/GenAI-Bench",
        {"test": 1889, "test_v1": 0}, _finder("video", "prompt"), official, _SOURCE,
        "video_generation", predictions=predictions,
        unseen=f"{_UNSEEN}. Videos are addresses there: fetch them into --image-root under their "
        "own names",
    ),
    Benchmark(
        "genai-bench-edit", "image_editing", "TIGER-Lab/GenAI-Bench",
        {"test": 0, "test_v1": 0}, _finder("output_image", "instruct_prompt", "source_image"),
        official, _SOURCE, "image_edition", predictions=predictions, unseen=_UNSEEN,
    ),
)  # fmt: skip
