"""Rows for the merger, and a merge of them."""

import json
import random
from pathlib import Path
from typing import Any

from cot_reward import settings
from cot_reward.pairing.run import merge
from cot_reward.pairing.settings import MergeSettings
from cot_reward.records import comparison_key, conversation

from helpers.rows import judged_row, read_lines, write_lines
from helpers.texts import cot

RIGHT = cot((8, 7), (6, 7), 1)
WRONG = cot((6, 7), (8, 7), 2)


def run(folder: Path, correct: list, incorrect: list, *flags: object) -> tuple[list, dict]:
    """Merge these rows. Returns the pairs of train.jsonl and the summary."""
    write_lines(folder / "correct.jsonl", correct)
    write_lines(folder / "incorrect.jsonl", incorrect)
    argv = ["--correct", folder / "correct.jsonl", "--incorrect", folder / "incorrect.jsonl",
            "--media-root", folder, "--out", folder / "out", *flags]  # fmt: skip
    assert merge(settings.parse(MergeSettings, "", argv=list(map(str, argv)))) == 0
    summary = json.loads((folder / "out/summary.json").read_text())
    return read_lines(folder / "out/train.jsonl"), summary


def published(text, form, caption="a cat", images=("a.png", "b.png"), **other):
    """A published row without a key, with `conversations` or with `problem` and `solution`."""
    prompt = f"<image><image>Judge them. Text Caption: [{caption}]"
    texts = (
        {"conversations": conversation(prompt, text)}
        if form == "conversations"
        else {"problem": prompt, "solution": text}
    )
    return texts | {"images": list(images)} | other


_PICTURES = [("a.png", "b.png"), ("a.png", "c.png"), ("d.png", "e.png")]


def random_rows(seed: int, count: int) -> tuple[list[Any], list[Any]]:
    """Rows of both sides about some comparisons: all that a merge may meet, at random."""
    rng = random.Random(seed)
    sides: tuple[list[Any], list[Any]] = ([], [])
    for number in range(count):
        side, order = rng.randrange(2), rng.choice(["given", "swapped"])
        caption, images = f"caption {rng.randrange(6)}", rng.choice(_PICTURES)
        shown = images if order == "given" else images[::-1]
        # The label is the comparison's, but for a few.
        preferred = 1 + sum(map(ord, caption + images[1])) % 2
        if rng.random() < 0.01:
            preferred = 3 - preferred
        label = preferred if order == "given" else 3 - preferred
        high, low = (rng.randint(6, 10), 7), (rng.randint(1, 5), 6)
        text = cot(high, low, 1) if label - 1 == side else cot(low, high, 2)
        more = {"sample": number, "model": rng.choice("mn"), "source": rng.choice("st")}
        row = judged_row(text, label, caption, shown, order, **more)
        kind = rng.random()
        if kind < 0.04:
            row = "no row"
        elif kind < 0.08:
            row |= {"label": 7}
        elif kind < 0.12:
            row = published(text, "conversations", caption, shown)
        elif kind < 0.4:
            videos = [name.replace("png", "mp4") for name in shown]
            row = judged_row(text.replace("Image", "Video"), label, caption, videos, order, **more)
            row["conversations"][0]["value"] = "<video><video>Judge: [a film]"
            key = comparison_key("video_generation", caption, (), tuple(videos))
            row |= {"images": [], "videos": videos, "task": "video_generation", "id": key}
        sides[side].append(row)
    return sides
