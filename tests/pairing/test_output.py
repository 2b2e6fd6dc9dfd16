"""What the merger writes, in each form."""

from pathlib import Path
from typing import Any

import pytest
from cot_reward.errors import UserError
from cot_reward.pairing.engine import match, scan
from cot_reward.pairing.engine.lines import PairLines
from cot_reward.rows.preferences import PairReader
from helpers.merging import RIGHT, WRONG, random_rows, run
from helpers.rows import judged_row, read_lines
from helpers.texts import cot


def sides(count: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Right and wrong responses about as many comparisons."""
    shown = [{"caption": f"a cat {n}", "images": (f"{n}a.png", f"{n}b.png")} for n in range(count)]
    right: list[Any] = [judged_row(RIGHT, **which) for which in shown]  # type: ignore[arg-type]
    wrong: list[Any] = [judged_row(WRONG, **which) for which in shown]  # type: ignore[arg-type]
    return right, wrong


@pytest.mark.parametrize("form", ["trl", "llamafactory", "swift"])
def test_every_form_holds_the_same_pairs_in_both_files(tmp_path: Path, form: str) -> None:
    flags = ["--eval-fraction", 0.3, "--no-balance-positions"]
    ours, _ = run(tmp_path, *sides(20), *flags)
    held_out = read_lines(tmp_path / "out/eval.jsonl")
    written, summary = run(tmp_path, *sides(20), *flags, "--form", form)
    assert ours
    assert held_out
    assert summary["settings"]["form"] == form
    for rows, expected in ((written, ours), (read_lines(tmp_path / "out/eval.jsonl"), held_out)):
        assert "problem" not in rows[0]
        read = PairReader()
        assert [read(number, row) for number, row in enumerate(rows, 1)] == expected


def test_pairs_of_videos_are_refused_in_the_form_of_trl(tmp_path: Path) -> None:
    """The files of an earlier merge stay."""
    right, wrong = sides(1)
    run(tmp_path, right, wrong, "--form", "trl")
    before = (tmp_path / "out/train.jsonl").read_bytes()
    videos: Any = {"images": [], "videos": ["a.mp4", "b.mp4"], "task": "video_generation"}
    prompt = {"from": "human", "value": "<video><video>Judge"}
    texts = cot((8, 7), (6, 7), 1, noun="Video"), cot((6, 7), (8, 7), 2, noun="Video")
    rows = [
        [judged_row("", **videos, conversations=[prompt, {"from": "gpt", "value": text}])]
        for text in texts
    ]
    with pytest.raises(UserError, match=r"--form trl: TRL trains on images only, and the pair is"):
        run(tmp_path, *rows, "--form", "trl")
    assert (tmp_path / "out/train.jsonl").read_bytes() == before
    (pair,), _ = run(tmp_path, *rows, "--form", "swift")
    assert pair["videos"] == ["a.mp4", "b.mp4"]


def test_files_of_rows_go_when_they_were_read_and_all_rows_are_written(tmp_path, monkeypatch):
    """The first film's comparison leads the file, out of the order of the batches."""
    correct, incorrect = random_rows(3, 250)
    flags = ("--max-bad-rows", 1)
    pairs, _ = run(tmp_path, correct, incorrect, *flags)
    ids = [pair["id"] for pair in pairs]
    assert ids != sorted(ids)
    left: list[set[str]] = []
    real = PairLines.remove_before

    def remove_before(lines: PairLines, batch: int) -> None:
        real(lines, batch)
        left.append({path.name for path in (tmp_path / "out/.merging").glob("lines-*")})

    monkeypatch.setattr(PairLines, "remove_before", remove_before)
    monkeypatch.setattr(match, "ROWS_PER_BATCH", 1)
    monkeypatch.setattr(scan, "MAX_BUCKET_BYTES", 2**14)
    again, _ = run(tmp_path, correct, incorrect, *flags)
    assert again == pairs
    assert len(left[0]) > 9 > 3 > len(left[-1])
