"""What the page's browser shows: items with the texts of all models, and DPO pairs."""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from cot_reward.evaluation.answers import NO_ANSWER
from cot_reward.evaluation.compare import Run
from cot_reward.evaluation.finished import stream_judged_rows
from cot_reward.evaluation.items import Item
from cot_reward.evaluation.votes import majority
from cot_reward.judge.announced import scores_in
from cot_reward.judge.totals import totals_in
from cot_reward.report.thumbnails import Thumbnails
from cot_reward.rows.reading import read_rows
from cot_reward.tasks import TASKS

# A text is cut here: a page is no place for a text that never ended.
_MOST_CHARACTERS = 8_000
_MOST_WORDS_COMPARED = 3_000
_WORDS = re.compile(r"\s+|[^\s\w]|\w+")


def browser_items(
    runs: Sequence[Run], thumbnails: Thumbnails, samples: int, limit: int
) -> list[dict[str, Any]]:
    """The items of aligned runs, each with `samples` texts of every model and order."""
    first = runs[0].answers
    votes = np.array([
        majority(run.answers.picks.reshape(len(run.answers.items), -1)) for run in runs
    ])  # fmt: skip
    entries: list[dict[str, Any]] = []
    for number, item in enumerate(first.items[:limit]):
        media = isinstance(item.candidates[0], list) if item.candidates else False
        shown = [
            [thumbnails.name(path) for path in (side if isinstance(side, list) else [side])]
            if media or _is_picture(side)
            else side
            for side in item.candidates
        ]
        of_models = {int(vote) for vote in votes[:, number] if vote != NO_ANSWER}
        entries.append({
            "name": item.name, "group": item.group, "better": item.better, "text": item.text,
            "sides": shown, "context": [thumbnails.name(path) for path in item.context],
            "disagree": len(of_models) > 1, "flips": [_flips(run, number) for run in runs],
            "texts": [],
        })  # fmt: skip
    for model, run in enumerate(runs):
        places: dict[str, list[int]] = {}
        for number, item in enumerate(run.answers.items[:limit]):
            places.setdefault(item.key, []).append(number)
        # Of several seeds the first.
        for row in stream_judged_rows(run.folders[0]):
            if row["sample"] < samples:
                for number in places.get(row["id"], ()):
                    text = _text(row, model, run.answers.items[number])
                    entries[number]["texts"].append(text)
    for entry in entries:
        entry["texts"].sort(key=lambda text: (text["sample"], text["model"], text["order"]))
        # By these an item is found, also where its texts lie beside the page.
        entry["results"] = [
            sorted({text["result"] for text in entry["texts"] if text["model"] == model})
            for model in range(len(runs))
        ]
    return entries


def _is_picture(side: Any) -> bool:
    return isinstance(side, str) and bool(re.search(r"\.(?:png|jpe?g|webp|bmp|gif|tiff?)$", side))


def _flips(run: Run, number: int) -> bool:
    """Whether the first texts of both orders name different candidates."""
    picks = run.answers.picks[number, :, 0]
    return bool((picks > NO_ANSWER).all() and picks[0] != picks[1])


def _text(row: Mapping[str, Any], model: int, item: Item) -> dict[str, Any]:
    text: str = row["conversations"][-1]["value"]
    return {
        "model": model, "order": row["order"], "sample": row["sample"], "pick": item.named(row),
        "first": item.shown_first(row), "result": _result(row, item),
        "coherence": row["coherence"], "text": text[:_MOST_CHARACTERS],
        "scores": score_table(text, TASKS[row["task"]].noun),
    }  # fmt: skip


def _result(row: Mapping[str, Any], item: Item) -> str:
    """What a text is: right, wrong, none (without an answer) or contradicts."""
    if not row["answer"]:
        return "none"
    if row["coherence"] in ("contradicts", "wrong_sum"):
        return "contradicts"
    return "wrong" if item.better and item.named(row) != item.better else "right"


def score_table(text: str, noun: str) -> dict[str, Any] | None:
    """The scores of both candidates and the totals that a text states; None without both."""
    totals, before = totals_in(text, noun)
    if not totals:
        return None
    scores = scores_in(before, noun)
    return {
        "scores": [[str(score) for score in scores.get(side, [])] for side in (1, 2)],
        "totals": [str(totals[side].total) for side in (1, 2)],
        "adds_up": [totals[side].adds_up for side in (1, 2)],
    }


def pair_items(file: Path, thumbnails: Thumbnails, limit: int) -> list[dict[str, Any]]:
    """DPO pairs of the merger, each with its texts in parts that are equal or differ."""
    return list(islice(_pairs(file, thumbnails), limit))


def _pairs(file: Path, thumbnails: Thumbnails) -> Iterator[dict[str, Any]]:
    for number, row in read_rows(file, may_be_empty=True):
        if isinstance(row, ValueError) or not isinstance(row.get("chosen"), str):
            continue
        chosen, rejected = differing(row["chosen"], str(row["rejected"]))
        yield {
            "name": f"{number}", "prompt": str(row.get("problem", ""))[:_MOST_CHARACTERS],
            "images": [thumbnails.name(path) for path in row.get("images", [])],
            "chosen": chosen, "rejected": rejected, "answer": row.get("chosen_answer", 0),
            "order": row.get("order", ""),
        }  # fmt: skip


def differing(one: str, other: str) -> tuple[list[list[Any]], list[list[Any]]]:
    """Both texts as lists of [text, whether the other one lacks it], word by word."""
    words = [_WORDS.findall(text[:_MOST_CHARACTERS]) for text in (one, other)]
    if max(map(len, words)) > _MOST_WORDS_COMPARED:
        return [[one[:_MOST_CHARACTERS], False]], [[other[:_MOST_CHARACTERS], False]]
    matcher = difflib.SequenceMatcher(None, words[0], words[1], autojunk=False)
    parts: tuple[list[list[Any]], list[list[Any]]] = ([], [])
    for kind, start, end, other_start, other_end in matcher.get_opcodes():
        spans = (words[0][start:end], words[1][other_start:other_end])
        for side, span in zip(parts, spans, strict=True):
            if span:
                side.append(["".join(span), kind != "equal"])
    return parts


def right_by_difference(
    items: Sequence[Mapping[str, Any]], models: int, bins: int = 6
) -> list[list[tuple[float, float, int]]]:
    """For each model: (middle of |difference of totals|, share of right texts, texts) by size.

    Of the texts of `browser_items` that state both totals; bins of equal numbers of texts. Ties do
    not count.
    """
    found: list[list[tuple[float, bool]]] = [[] for _ in range(models)]
    for item in items:
        for text in item["texts"]:
            if item["better"] and text["pick"] and text["scores"]:
                first, second = map(float, text["scores"]["totals"])
                found[text["model"]].append((abs(first - second), text["pick"] == item["better"]))
    return [_binned(pairs, bins) for pairs in found]


def right_by_length(runs: Sequence[Run], bins: int = 6) -> list[list[tuple[float, float, int]]]:
    """As `right_by_difference`, by the characters of the texts; all texts but those of ties."""
    found = []
    for run in runs:
        answers = run.answers
        counts = ~answers.missing & ~answers.is_tie[:, None, None]
        lengths, right = answers.asked(answers.length)[counts], answers.right[counts]
        found.append(_binned(zip(lengths.tolist(), right.tolist(), strict=True), bins))
    return found


def _binned(pairs: Iterable[tuple[float, bool]], bins: int) -> list[tuple[float, float, int]]:
    ordered = sorted(pairs)
    if not ordered:
        return []
    parts = np.array_split(np.array(ordered, dtype=float), min(bins, len(ordered)))
    return [(float(p[:, 0].mean()), float(p[:, 1].mean()), len(p)) for p in parts]
