"""Merges of shares of the comparisons, and the shares put together."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cot_reward import settings
from cot_reward.errors import UserError
from cot_reward.pairing.joining.run import join
from cot_reward.pairing.run import merge
from cot_reward.pairing.settings import JoinSettings, MergeSettings
from cot_reward.records import comparison_key
from cot_reward.rows.shards import Shard
from helpers.merging import published
from helpers.rows import judged_row, read_lines, write_lines
from helpers.texts import cot
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

# Two pictures of a third one's comparisons, and a video.
PICTURES = [("a.png", "b.png"), ("a.png", "c.png"), ("d.png", "e.png")]


def made_rows(seed: int, count: int) -> tuple[list[Any], list[Any]]:
    """Rows of both sides about some comparisons: all that a merge may meet, at random."""
    rng = random.Random(seed)
    sides: tuple[list[Any], list[Any]] = ([], [])
    for number in range(count):
        side, order = rng.randrange(2), rng.choice(["given", "swapped"])
        caption, images = f"caption {rng.randrange(6)}", rng.choice(PICTURES)
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


def flags(folder: Path, *more: object) -> list[object]:
    return ["--correct", folder / "correct.jsonl", "--incorrect", folder / "incorrect.jsonl",
            "--media-root", folder, "--max-bad-rows", 1, *more]  # fmt: skip


def run_merge(out: Path, argv: list[object], *more: object) -> None:
    argv = [*argv, "--out", out, *more]
    assert merge(settings.parse(MergeSettings, "", argv=list(map(str, argv)))) == 0


def run_join(out: Path, folders: list[Path], *more: object) -> dict[str, Any]:
    argv = ["--join", *folders, "--out", out, *more]
    assert join(settings.parse(JoinSettings, "", argv=list(map(str, argv)))) == 0
    summary: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return summary


def shares(folder: Path, argv: list[object], count: int) -> Iterator[Path]:
    """Merge each share into a folder of its own; shares without a pair are left out."""
    for number in range(1, count + 1):
        out = folder / f"share{number}"
        try:
            run_merge(out, argv, "--shard", f"{number}/{count}")
        except UserError as error:
            if "no pair" not in str(error):
                raise
            continue
        yield out


# What is the joined shares' own in a summary.
OWN = ("settings", "command", "seconds", "seconds_of", "versions", "shares")


@pytest.mark.parametrize("count", [1, 2, 3, pytest.param(7, marks=pytest.mark.slow)])
@given(
    seed=st.integers(0, 2**16),
    more=st.sampled_from(
        [
            (), ("--select", "all"), ("--pairs-per-comparison", 3, "--select", "random"),
            ("--pair-from", "both", "--trained-model", "m"), ("--pass-rate", 0.2, 0.8),
            ("--pairs-per-comparison", 2, "--exclude", "held_out.jsonl"),
        ]
    ),
)  # fmt: skip
@hypothesis_settings(
    max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_joined_shares_are_one_merge(tmp_path_factory, count, seed, more):
    folder = tmp_path_factory.mktemp("shares")
    correct, incorrect = made_rows(seed, 250)
    write_lines(folder / "correct.jsonl", correct)
    write_lines(folder / "incorrect.jsonl", incorrect)
    write_lines(folder / "held_out.jsonl", [r for r in correct[:9] if isinstance(r, dict)])
    more = [folder / word if word == "held_out.jsonl" else word for word in more]
    # Balancing would drop other pairs in each share.
    argv = flags(folder, "--no-balance-positions", *more)
    run_merge(folder / "one", argv)
    folders = list(shares(folder, argv, count))
    pairs = {path: read_lines(path / "train.jsonl") for path in [folder / "one", *folders]}
    for path in folders:
        shard = Shard.parse(json.loads((path / "summary.json").read_text())["settings"]["shard"])
        assert all(shard.holds(pair["id"]) for pair in pairs[path])
    of_all = sorted(json.dumps(pair) for path in folders for pair in pairs[path])
    assert of_all == sorted(json.dumps(pair) for pair in pairs[folder / "one"])
    if len(folders) < count:
        with pytest.raises(UserError, match=r"shares are missing|are in no share"):
            run_join(folder / "joined", folders)
        return
    joined = run_join(folder / "joined", folders[::-1])
    one = json.loads((folder / "one/summary.json").read_text())
    for name in ("train.jsonl", "bad_rows.jsonl", "contradictory_labels.jsonl"):
        texts = [folder / of / name for of in ("one", "joined")]
        assert texts[0].exists() == texts[1].exists(), name
        if texts[0].exists():
            assert texts[0].read_bytes() == texts[1].read_bytes(), name
    assert joined.keys() - {"shares"} == one.keys() - {"seconds_of"}
    for name in one.keys() - set(OWN):
        assert joined[name] == one[name], name
    changed = {
        name for name in one["settings"] if one["settings"][name] != joined["settings"][name]
    }
    assert changed == {"out"}
