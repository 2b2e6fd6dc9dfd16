"""Multimodal RewardBench 2: the tasks whose responses are one image, generated or edited."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from cot_reward.evaluation.answers import NO_ANSWER, Answers
from cot_reward.evaluation.benchmarks.form import Benchmark, Found, Official, meaning, text_at
from cot_reward.store import dump


def _parts(content: Any, kind: str) -> list[str]:
    """The texts or images of [["text", ...], ["image", ...]]."""
    if not isinstance(content, list):
        raise ValueError(f"a content must be a list of parts, not {content!r:.60}")
    return [part[1] for part in content if isinstance(part, list) and part[:1] == [kind]]


def _image_of(row: Mapping[str, Any], name: str) -> str:
    images = _parts((row.get(name) or {}).get("response_content"), "image")
    if len(images) != 1:
        raise ValueError(f"'{name}' has {len(images)} images; one is compared")
    return images[0]


def _finder(sources: int) -> Callable[[Mapping[str, Any], int], Found | None]:
    """The pairs whose prompt shows so many images; others are no items."""

    def find(row: Mapping[str, Any], number: int) -> Found | None:
        shown = _parts(row.get("prompt_content"), "image")
        if len(shown) != sources:
            return None
        prompt = "\n".join(_parts(row.get("prompt_content"), "text"))
        name = str(row.get("pair_id") or row.get("id") or number)
        return Found(
            name, text_at(row, "prompt_source"), meaning(row, "chosen", {"A": 1, "B": 2}),
            prompt, (_image_of(row, "response_a"), _image_of(row, "response_b")), tuple(shown),
        )  # fmt: skip

    return find


def official(answers: Answers) -> Official:
    """Both orders, the first text of each; what has no verdict is left out.

    The official score counts texts, not items.
    """
    picks = answers.asked(answers.picks)[:, :, 0]
    read = picks > NO_ANSWER
    right = (picks == answers.truth[:, None]) & read
    texts = int(read.sum())
    groups = {}
    for name in sorted({item.group for item in answers.items}):
        mask = np.array([item.group == name for item in answers.items])
        if read[mask].any():
            groups[name] = float(right[mask].sum() / read[mask].sum())
    overall = float(right.sum() / texts) if texts else float("nan")
    return Official(
        "both orders, one text each, texts without a verdict left out",
        groups,
        overall,
        "",
        {"texts without a verdict": int((~read).sum())},
    )


def predictions(answers: Answers) -> tuple[str, str]:
    """The scorer's --predictions: the judgement of both orders, as it was shown."""
    found = {}
    for item, shown in zip(answers.items, answers.shown[:, :, 0].tolist(), strict=True):
        judged = [{1: "A", 2: "B"}.get(answer, "") for answer in shown]
        found[item.name] = {
            name: [{"judgement": answer}]
            for name, answer in zip(("forward", "reverse"), judged, strict=True)
        }
    return "predictions.json", dump(found) + "\n"


_SOURCE = "compute_accuracy.py of github.com/facebookresearch/MMRB2"
_UNSEEN = (
    "the rows themselves: build {0} with the authors' build_from_hf.py, and name it with "
    "--snapshot; pairs that show another number of images are left out and counted"
)
MMRB2 = (
    Benchmark(
        "mmrb2-image", "image_generation", "rl-research/multimodal-rewardbench-2", {"test": 1000},
        _finder(0), official, _SOURCE, files=("t2i.json",), rows_key="pairs",
        predictions=predictions,
        unseen=_UNSEEN.format("t2i.json"),
    ),
    Benchmark(
        "mmrb2-edit", "image_editing", "rl-research/multimodal-rewardbench-2", {"test": 1000},
        _finder(1), official, _SOURCE, files=("edit.json",), rows_key="pairs",
        predictions=predictions,
        unseen=_UNSEEN.format("edit.json"),
    ),
)  # fmt: skip
