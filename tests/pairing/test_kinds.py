"""Whose texts are in a pair: of one model, of the published method, or both; and what is told."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from cot_reward.errors import UserError
from helpers.merging import run
from helpers.rows import judged_row, write_lines
from helpers.texts import cot

ONE_MODEL, PUBLISHED = ("stage2", "stage2"), ("stage2", "stage1")


def texts(
    name: str, right: dict[str, int], wrong: dict[str, int], label: int = 1
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Right and wrong rows about a comparison: so many by each model, all texts different."""
    sides = []
    for answer, counts in ((label, right), (3 - label, wrong)):
        totals = ((8, 7), (6, 7)) if answer == 1 else ((6, 7), (8, 7))
        sides.append([
            judged_row(
                cot(*totals, answer, remark=f"{name} {model} {answer} {n} " * (n + 1)), label,
                caption=name, model=model, sample=n,
            )
            for model, count in counts.items() for n in range(count)
        ])  # fmt: skip
    return sides[0], sides[1]


def many(
    *comparisons: tuple[dict[str, int], dict[str, int], int],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of several comparisons: right and wrong texts by model, and the label of each."""
    right, wrong = [], []
    for number, (right_of, wrong_of, label) in enumerate(comparisons):
        more_right, more_wrong = texts(f"c{number}", right_of, wrong_of, label)
        right += more_right
        wrong += more_wrong
    return right, wrong


def models(pairs: list[dict[str, Any]]) -> Counter[tuple[str, str]]:
    return Counter((pair["chosen_model"], pair["rejected_model"]) for pair in pairs)


BOTH = ({"stage2": 2}, {"stage1": 2, "stage2": 2})
ONLY_FIRST = ({"stage2": 2}, {"stage1": 2})


@pytest.mark.parametrize(
    ("pair_from", "expected"),
    [
        ("prefer-same-model", {ONE_MODEL: 2, PUBLISHED: 2}),
        ("same-model", {ONE_MODEL: 2}),
        ("published", {PUBLISHED: 4}),
    ],
)
def test_each_way_takes_its_pairs(tmp_path: Path, pair_from: str, expected: dict) -> None:
    rows = many((*BOTH, 1), (*BOTH, 2), (*ONLY_FIRST, 1), (*ONLY_FIRST, 2))
    pairs, summary = run(tmp_path, *rows, "--pair-from", pair_from)
    assert models(pairs) == expected
    kinds = {"same_model": expected.get(ONE_MODEL, 0), "published": expected.get(PUBLISHED, 0)}
    assert summary["pair_kinds"] == kinds | {"other_cross_model": 0}
    assert summary["rejected_from_first_pass"] == kinds["published"]
    assert summary["trained_model"] == "stage2"


def test_both_kinds_of_a_comparison_are_pairs_beside_each_other(tmp_path: Path) -> None:
    rows = many((*BOTH, 1), (*BOTH, 2))
    flags = ["--pair-from", "both", "--pairs-per-comparison", 4]
    pairs, summary = run(tmp_path, *rows, *flags)
    assert models(pairs) == {ONE_MODEL: 4, PUBLISHED: 4}
    assert summary["pairs"] == 8


def test_no_kind_leans_to_a_position(tmp_path: Path) -> None:
    """Alike in all, but pairs of one model answer 1 and published ones 2: both must lose pairs."""
    one_model = ({"stage2": 1}, {"stage2": 1})
    rows = many(*[(*one_model, 1)] * 6, (*one_model, 2), *[(*ONLY_FIRST, 2)] * 6, (*ONLY_FIRST, 1))
    pairs, _ = run(tmp_path, *rows, "--pair-from", "both")
    answers = Counter((pair["rejected_model"], pair["chosen_answer"]) for pair in pairs)
    for model in ("stage1", "stage2"):
        assert abs(answers[model, 1] - answers[model, 2]) <= 1
    one_group, _ = run(tmp_path, *rows, "--pair-from", "any")
    assert len(one_group) == 14  # together they are even


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_a_share_is_met_by_choosing_before_dropping(tmp_path: Path, share: float) -> None:
    rows = many(*[(*BOTH, 1 + n % 2) for n in range(16)])
    flags = ["--pair-from", "both", "--published-share", share]
    pairs, summary = run(tmp_path, *rows, *flags)
    assert len(pairs) == 16
    assert summary["pair_kinds"]["published"] == 16 * share
    assert sum(summary["balancing"]["dropped_for_share"].values()) == 0


def test_pairs_in_excess_of_a_share_are_dropped_and_accounted_for(tmp_path: Path) -> None:
    one_model = ({"stage2": 1}, {"stage2": 1})
    rows = many(*[(*one_model, 1 + n % 2) for n in range(12)], (*ONLY_FIRST, 1), (*ONLY_FIRST, 2))
    pairs, summary = run(tmp_path, *rows, "--pair-from", "both", "--published-share", 0.5)
    assert models(pairs) == {ONE_MODEL: 2, PUBLISHED: 2}
    assert sum(summary["balancing"]["dropped_for_share"].values()) == 10
    assert summary["correct_side"]["dropped_by_share"] == 10
    assert Counter(pair["chosen_answer"] for pair in pairs) == {1: 2, 2: 2}


def test_a_share_of_a_kind_that_is_not_there_drops_nothing(tmp_path: Path) -> None:
    one_model = ({"stage2": 1}, {"stage2": 1})
    rows = many(*[(*one_model, 1 + n % 2) for n in range(4)])
    pairs, _ = run(tmp_path, *rows, "--pair-from", "both", "--published-share", 0.5)
    assert models(pairs) == {ONE_MODEL: 4}


def test_the_other_way_round_is_not_the_published_method(tmp_path: Path) -> None:
    rows = many(({"stage1": 1, "stage2": 1}, {"stage1": 1, "stage2": 1}, 1))
    flags = ["--pair-from", "published", "--pairs-per-comparison", 9]
    with pytest.raises(UserError, match=r"'stage1' .1 rows., 'stage2' .1 rows.; name it with"):
        run(tmp_path, *rows, *flags)
    pairs, _ = run(tmp_path, *rows, *flags, "--trained-model", "stage2")
    assert models(pairs) == {PUBLISHED: 1}
    with pytest.raises(UserError, match=r"no row of --correct is by 'stage3'.* Did you mean 'sta"):
        run(tmp_path, *rows, *flags, "--trained-model", "stage3")


def test_the_older_flag_says_the_same_and_does_not_contradict(tmp_path: Path) -> None:
    rows = many((*BOTH, 1))
    assert models(run(tmp_path, *rows, "--same-model", "require")[0]) == {ONE_MODEL: 1}
    with pytest.raises(UserError, match="--same-model require says --pair-from same-model"):
        run(tmp_path, *rows, "--same-model", "require", "--pair-from", "published")


def test_the_same_bytes_with_any_number_of_workers(tmp_path: Path) -> None:
    rows = many(*[(*BOTH, 1 + n % 2) for n in range(9)])
    flags = ["--pair-from", "both", "--published-share", 0.3, "--workers"]
    written = set()
    for workers in (1, 3):
        run(tmp_path, *rows, *flags, workers)
        written.add((tmp_path / "out/train.jsonl").read_bytes())
    assert len(written) == 1


def test_a_file_that_meets_nothing_is_told_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    right, wrong = many((*BOTH, 1))
    stray = write_lines(tmp_path / "stray.jsonl", texts("other data", {}, {"stage1": 3})[1])
    flags = ["--incorrect", tmp_path / "incorrect.jsonl", stray]
    _, summary = run(tmp_path, right, wrong, *flags)
    assert (
        f"warning: 0 of 1 comparisons of {stray} are on the other side; were both passes over the "
        "same data?" in capsys.readouterr().err
    )
    shared = {Path(entry["file"]).name: entry["shared"] for entry in summary["files"]}
    assert shared == {"correct.jsonl": 1, "incorrect.jsonl": 1, "stray.jsonl": 0}


def test_sides_that_share_nothing_say_so_with_the_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    right = texts("some data", {"stage2": 2}, {})[0]
    wrong = texts("other data", {}, {"stage1": 2})[1]
    with pytest.raises(UserError, match="no pair"):
        run(tmp_path, right, wrong)
    assert capsys.readouterr().err.count("were both passes over the same data?") == 2


def test_each_kind_is_audited_by_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Pairs of two models whose style tells the chosen text, beside pairs of one model."""
    rows = many(*[(*BOTH, 1 + n % 2) for n in range(30)])
    for row in rows[1]:
        if row["model"] == "stage1":
            row["conversations"][1]["value"] = row["conversations"][1]["value"].replace(
                "stage1", "evidently"
            )
    flags = ["--pair-from", "both", "--pairs-per-comparison", 4]
    _, summary = run(tmp_path, *rows, *flags)
    by_kind = summary["shortcut_by_kind"]
    assert set(by_kind) == {"same_model", "published"}
    assert by_kind["published"]["words"] > 0.9 > by_kind["same_model"]["words"]
    told = capsys.readouterr()
    assert "pairs with a wrong text of the first pass: words" in told.out
    assert "train.jsonl, pairs with a wrong text of the first pass: without seeing" in told.err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--published-share", "0.5"], "--published-share goes with --pair-from both"),
        (["--pair-from", "both", "--published-share", "1"], "between 0 and 1"),
        (["--pair-from", "both", "--balance-lengths"], "does not go with --pair-from both"),
        (["--pair-from", "publshed"], "not one of"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(
    tmp_path: Path, flags: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        run(tmp_path, *many((*BOTH, 1)), *flags)
