"""What `--balance-lengths` keeps by choosing among pairs, and what dropping pairs alone would keep.

    .envs/main/bin/python tests/bench/lengths.py [--comparisons 4000] [--samples 4] [--seed 0]

Made responses of one model, as in published pairs: of a random right and a random wrong text the
right one is the longer in 72%. `--samples` texts an order, both orders, 70% of them right. "choose"
is `--balance-lengths` as it is, "first" the same among the pairs that a first choice leaves, as it
is done where very many pairs are possible, "drop" is the same without choosing among a comparison's
pairs, and "off" is no balance of lengths. Prints Markdown: pairs kept, their comparisons, and how
often the length alone tells chosen from rejected (0.5 is chance).
"""

import argparse
import contextlib
import dataclasses
import io
import json
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
sys.path.insert(0, str(Path(__file__).parents[1]))

from cot_reward import settings
from cot_reward.pairing import all_pairs, balance, run
from cot_reward.pairing.settings import MergeSettings
from helpers.rows import judged_row, write_lines
from helpers.texts import cot

SHARE_RIGHT = 0.7
MEAN_WORDS, SD_WORDS = 24, 5
# Two normal lengths of this standard deviation, so far apart that the right one is longer in 72%.
EXTRA_WORDS_OF_RIGHT = 0.583 * 2**0.5 * SD_WORDS
VOCABULARY = [f"w{number}" for number in range(300)]


def response(rng: random.Random, words: list[str], is_right: bool, answer: int) -> str:
    """A coherent text; most of its words are those of its comparison."""
    count = max(1, round(rng.gauss(MEAN_WORDS + EXTRA_WORDS_OF_RIGHT * is_right, SD_WORDS)))
    said = [rng.choice(words if rng.random() < 0.7 else VOCABULARY) for _ in range(count)]
    a, b = rng.randint(1, 8), rng.randint(1, 8)
    better, worse = (a + 1, b), (a, b)
    scores = (better, worse) if answer == 1 else (worse, better)
    return cot(*scores, answer, remark=" ".join(said) + " ")


def write_responses(folder: Path, comparisons: int, samples: int, seed: int) -> None:
    rng = random.Random(seed)
    rows: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    for number in range(comparisons):
        label, words = rng.choice((1, 2)), rng.choices(VOCABULARY, k=60)
        images = (f"{number}_a.png", f"{number}_b.png")
        for order, shown, shown_label in (
            ("given", images, label),
            ("swapped", images[::-1], 3 - label),
        ):
            for sample in range(samples):
                is_right = rng.random() < SHARE_RIGHT
                answer = shown_label if is_right else 3 - shown_label
                text = response(rng, words, is_right, answer)
                rows[is_right].append(
                    judged_row(
                        text, shown_label, f"caption {number}", shown, order=order, sample=sample
                    )
                )
    write_lines(folder / "correct.jsonl", rows[True])
    write_lines(folder / "incorrect.jsonl", rows[False])


def merge(folder: Path, *flags: object) -> dict[str, Any]:
    """The summary of a merge of the folder's responses."""
    argv = [
        "--correct", folder / "correct.jsonl", "--incorrect", folder / "incorrect.jsonl",
        "--media-root", folder, "--out", folder / "out", "--workers", 1, *flags,
    ]  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        run.merge(settings.parse(MergeSettings, "", argv=list(map(str, argv))))
    summary: dict[str, Any] = json.loads((folder / "out/summary.json").read_text())
    return summary


@contextlib.contextmanager
def of_first_choice() -> Any:
    """Within, no choice is made among all pairs."""
    most, all_pairs.MAX_PAIRS = all_pairs.MAX_PAIRS, -1
    try:
        yield
    finally:
        all_pairs.MAX_PAIRS = most


@contextlib.contextmanager
def without_choosing() -> Any:
    """Within, lengths are balanced by dropping pairs alone."""
    choose, rules = balance._choose_for_lengths, run.Rules
    balance._choose_for_lengths = lambda *_, **__: Counter()
    run.Rules = lambda **fields: dataclasses.replace(
        rules(**fields), of_each_length=False, keep_spare=False
    )
    try:
        yield
    finally:
        balance._choose_for_lengths, run.Rules = choose, rules


def cell(summary: dict[str, Any]) -> str:
    pairs, comparisons = summary["pairs"], summary["comparisons"]
    return f"{pairs} / {comparisons} / {summary['shortcut']['length']:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--comparisons", type=int, default=4000)
    parser.add_argument("--samples", type=int, default=4, help="texts an order")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print("Pairs / comparisons / accuracy of the length alone.\n")
    print("| select | pairs per comparison | off | choose | first | drop | kept by first, drop |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_responses(folder, options.comparisons, options.samples, options.seed)
        for select in ("closest-text", "random"):
            for count in (1, 2, 4):
                flags = ["--select", select, "--pairs-per-comparison", count]
                off = merge(folder, *flags)
                chosen = merge(folder, *flags, "--balance-lengths")
                with of_first_choice():
                    first = merge(folder, *flags, "--balance-lengths")
                with without_choosing():
                    dropped = merge(folder, *flags, "--balance-lengths")
                shares = [f"{way['pairs'] / chosen['pairs']:.0%}" for way in (first, dropped)]
                print(
                    f"| {select} | {count} | {cell(off)} | {cell(chosen)} | {cell(first)} "
                    f"| {cell(dropped)} | {', '.join(shares)} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
