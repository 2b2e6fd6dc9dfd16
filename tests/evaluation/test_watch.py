"""The comparison of two models by their judged answers, against shares counted by hand."""

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from cot_reward.errors import UserError
from cot_reward.evaluation.watch import WORSE, compare, watch
from helpers.environments import PYTHON, REPO
from helpers.evaluation import RIGHT, TURNED, WRONG, Verdicts, judged_run
from helpers.rows import read_lines, write_lines

UNPARSED = ("unparsed", "unparsed")


def answers(folder: Path, verdicts: Sequence[Verdicts], **settings: object) -> Path:
    """A finished inference with its settings; weights are named after the folder."""
    judged_run(folder, verdicts)
    known = {"temperature": 1.0, "templates": {"image_generation": "abc"}}
    known["served_model"] = {"weights": folder.name}
    (folder / "settings.json").write_text(json.dumps(known | settings))
    return folder


def test_the_figures_are_shares_of_both_and_their_paired_difference(tmp_path):
    before = answers(tmp_path / "a", [RIGHT, WRONG, TURNED, RIGHT])
    after = answers(tmp_path / "b", [RIGHT, TURNED, RIGHT, UNPARSED])
    result = compare(before, after)
    accuracy = result["figures"]["accuracy"]
    assert (accuracy["before"], accuracy["after"]) == (5 / 8, 5 / 8)
    assert accuracy["difference"] == 0
    assert result["figures"]["well_formed"]["after"] == 3 / 4
    swaps = result["figures"]["survives_swap"]
    assert (swaps["before"], swaps["after"]) == (3 / 4, 2 / 4)
    assert (result["comparisons"], result["texts"]) == (4, 8)


@pytest.mark.parametrize(
    ("before", "after", "fell"),
    [
        ([RIGHT] * 60 + [WRONG] * 40, [RIGHT] * 40 + [WRONG] * 60, ["accuracy"]),
        ([RIGHT] * 40 + [WRONG] * 60, [RIGHT] * 60 + [WRONG] * 40, []),
        # One comparison of 100: chance.
        ([RIGHT] * 60 + [WRONG] * 40, [RIGHT] * 59 + [WRONG] * 41, []),
        # TURNED answers 1 in both orders.
        (
            [RIGHT] * 50 + [WRONG] * 50,
            [RIGHT] * 30 + [TURNED] * 40 + [WRONG] * 30,
            ["survives a swap", "balance of positions"],
        ),
        # A lean that becomes smaller is none.
        ([TURNED] * 60 + [RIGHT] * 40, [TURNED] * 20 + [RIGHT] * 80, []),
        # The form is lost where the answers were wrong.
        (
            [RIGHT] * 60 + [WRONG] * 40,
            [RIGHT] * 60 + [UNPARSED] * 40,
            ["well-formed", "coherent", "survives a swap"],
        ),
    ],
)
def test_what_fell(tmp_path, before, after, fell):
    folders = answers(tmp_path / "a", before), answers(tmp_path / "b", after)
    assert compare(*folders)["fell"] == fell


def test_a_lean_to_the_other_side_counts_by_its_size(tmp_path):
    turned_back = ("incorrect", "correct")  # answers 2 in both orders
    before = answers(tmp_path / "a", [TURNED] * 30 + [RIGHT] * 70)
    same_size = answers(tmp_path / "b", [turned_back] * 30 + [RIGHT] * 70)
    larger = answers(tmp_path / "c", [turned_back] * 90 + [RIGHT] * 10)
    assert "balance of positions" not in compare(before, same_size)["fell"]
    assert "balance of positions" in compare(before, larger)["fell"]


def test_incoherent_texts_count_though_the_answers_stay_right(tmp_path):
    before = answers(tmp_path / "a", [RIGHT] * 50)
    after = answers(tmp_path / "b", [RIGHT] * 50)
    rows = read_lines(after / "correct.jsonl")
    for row in rows[::4]:
        row["coherence"] = "contradicts"
    write_lines(after / "correct.jsonl", rows)
    assert compare(before, after)["fell"] == ["coherent"]


@pytest.mark.parametrize(
    ("verdicts", "settings", "message"),
    [
        ([RIGHT] * 5, {}, "have other texts about 1 of 5 comparisons"),
        ([RIGHT] * 4, {"temperature": 0.0}, "temperature is 1.0 and 0.0"),
        ([RIGHT] * 4, {"templates": {"image_generation": "def"}}, "templates is"),
        ([RIGHT] * 4, {"served_model": {"weights": "a"}}, "answers of the same model"),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path, verdicts, settings, message):
    before = answers(tmp_path / "a", [RIGHT] * 4)
    after = answers(tmp_path / "b", verdicts, **settings)
    with pytest.raises(UserError, match=message):
        compare(before, after)
    with pytest.raises(UserError, match="answers of the same model"):
        compare(before, before)


def test_another_number_of_samples_is_refused(tmp_path):
    before = answers(tmp_path / "a", [RIGHT] * 4)
    after = answers(tmp_path / "b", [RIGHT] * 4)
    rows = read_lines(after / "correct.jsonl")
    write_lines(after / "correct.jsonl", rows + [row | {"sample": 1} for row in rows])
    with pytest.raises(UserError, match="have other texts about 4 of 4 comparisons"):
        compare(before, after)


def test_a_comparison_that_failed_for_one_model_counts_for_none(tmp_path):
    before = answers(tmp_path / "a", [RIGHT] * 40)
    after = answers(tmp_path / "b", [RIGHT] * 40)
    rows = read_lines(after / "correct.jsonl")
    write_lines(after / "correct.jsonl", [row for row in rows if row["id"] != "comparison 7"])
    result = compare(before, after)
    assert (result["comparisons"], result["texts"], result["left_out"]) == (39, 78, 1)
    assert result["fell"] == []


def test_an_unfinished_inference_is_refused(tmp_path):
    before = answers(tmp_path / "a", [RIGHT] * 4)
    after = answers(tmp_path / "b", [RIGHT] * 4)
    (after / "summary.json").unlink()
    with pytest.raises(UserError, match="has not finished"):
        compare(before, after)
    (after / "settings.json").write_text("{")
    with pytest.raises(UserError, match="not the settings of an inference"):
        compare(before, after)


def test_the_script_tells_what_fell_and_its_exit_code(tmp_path, capsys):
    before = answers(tmp_path / "a", [RIGHT] * 60 + [WRONG] * 40)
    after = answers(tmp_path / "b", [RIGHT] * 40 + [WRONG] * 60)
    out = tmp_path / "check.json"
    assert watch(before, after, out) == WORSE
    assert "worse: accuracy" in capsys.readouterr().out
    assert json.loads(out.read_text())["fell"] == ["accuracy"]
    assert watch(after, before, out) == 0
    assert "not worse" in capsys.readouterr().out
    script = [PYTHON, REPO / "scripts/check_model.py"]
    done = subprocess.run(
        [*script, "--before", before, "--after", after, "--out", out], check=False
    )
    assert done.returncode == WORSE
