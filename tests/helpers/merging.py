"""Rows for the merger, and a merge of them."""

import json
from pathlib import Path

from cot_reward import settings
from cot_reward.pairing.run import merge
from cot_reward.pairing.settings import MergeSettings
from cot_reward.records import conversation

from helpers.rows import read_lines, write_lines
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
