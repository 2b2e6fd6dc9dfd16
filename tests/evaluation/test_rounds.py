"""Which rounds of DPO were a gain, and which of those on disk belong to a run."""

import json
from pathlib import Path

import pytest
from cot_reward.evaluation.rounds import WATCH_FILE, evaluated_rounds, rose, round_folder


def compared(difference: float, *fell: str) -> dict:
    return {"fell": list(fell), "figures": {"accuracy": {"difference": difference}}}


@pytest.mark.parametrize(
    ("watched", "gain"),
    [
        (compared(0.001), True),
        (compared(0.0), False),
        (compared(1e-17), False),
        (compared(-0.001), False),
        (compared(0.1, "coherent"), False),
    ],
)
def test_a_gain_is_more_accuracy_and_nothing_that_fell(watched: dict, gain: bool) -> None:
    assert rose(watched) == gain


def test_rounds_end_after_the_first_one_that_was_no_gain(tmp_path: Path) -> None:
    for number, difference in ((1, 0.1), (2, -0.1), (3, 0.1)):
        folder = round_folder(tmp_path, number)
        (folder / "eval_stage3").mkdir(parents=True)
        (folder / WATCH_FILE).write_text(json.dumps(compared(difference)))
    assert evaluated_rounds(tmp_path) == [1, 2]
    (tmp_path / WATCH_FILE).unlink()
    assert evaluated_rounds(tmp_path) == [1]
