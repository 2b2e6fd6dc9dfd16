"""Multimodal RewardBench: two answers to a question about an image, in six areas."""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np

from cot_reward.evaluation.answers import Answers
from cot_reward.evaluation.benchmarks.form import (
    Benchmark,
    Found,
    Official,
    meaning,
    medium_at,
    text_at,
)
from cot_reward.evaluation.benchmarks.rules import by_groups, first_answers
from cot_reward.store import dump

# The seed of the official scorer, which decides texts without a verdict by a coin.
_SEED = 123


def group_of(category: str, name: str) -> str:
    """The group of an item, as the official scorer divides two of the categories."""
    name = name.lower()
    if category == "safety":
        return "safety/bias" if name.startswith("pairs") else "safety/toxicity"
    if category == "reasoning":
        return "reasoning/math" if name.startswith("math") else "reasoning/coding"
    return category


def find(row: Mapping[str, Any], number: int) -> Found:
    name, question = text_at(row, "ID"), text_at(row, "Text")
    image = medium_at(row, "Image")
    return Found(
        f"{name} #{number}", group_of(text_at(row, "Category"), name),
        meaning(row, "Better", {"Output1": 1, "Output2": 2}), question,
        (text_at(row, "Output1"), text_at(row, "Output2")), (image,),
    )  # fmt: skip


def official(answers: Answers) -> Official:
    """The published order, one text; without a verdict a seeded coin decides."""
    picks, coin = first_answers(answers), random.Random(_SEED)
    decided = np.array(
        [pick if pick > 0 else (1 if coin.random() < 0.5 else 2) for pick in picks.tolist()]
    )
    return by_groups(
        answers, decided == answers.truth, np.ones(len(picks), dtype=bool),
        "the published order, one text, a coin (seed 123) for texts without a verdict",
        counts={"decided by the coin": int((picks <= 0).sum())},
    )  # fmt: skip


def predictions(answers: Answers) -> tuple[str, str]:
    """The lines of the scorer's --answers-file; a text without a verdict says neither."""
    verdicts = {1: "[[A]]", 2: "[[B]]"}
    lines = [
        dump({
            "ID": item.name.rpartition(" #")[0], "output": verdicts.get(pick, ""),
            "Label": "AB"[item.better - 1], "Meta": {"Category": item.group.partition("/")[0]},
        })
        for item, pick in zip(answers.items, first_answers(answers).tolist(), strict=True)
    ]  # fmt: skip
    return "predictions.jsonl", "".join(line + "\n" for line in lines)


MULTIMODAL_REWARDBENCH = Benchmark(
    "multimodal-rewardbench", "image_understanding", "facebookresearch/multimodal_rewardbench",
    {"test": 0}, find, official,
    "2_get_accuracy.py of github.com/facebookresearch/multimodal_rewardbench",
    files=("all_data.json",), predictions=predictions,
    unseen="the rows themselves: build data/all_data.json with the authors' script, and name it "
    "with --snapshot and its images with --image-root; without Hateful Memes, which they do not "
    "publish, it has fewer than the 5,000 items of the paper",
)  # fmt: skip
