"""Collected results against counts made by hand, on small folders of judged runs."""

import shutil

import pytest
from cot_reward.errors import UserError
from cot_reward.evaluation.answers import read_answers
from cot_reward.evaluation.collect import (
    DIFFERENCES,
    MODES,
    STAGES,
    accuracy_by_comparison,
    collect,
    training_pace,
)
from cot_reward.evaluation.finished import judged_rows
from helpers.evaluation import (
    RIGHT,
    TURNED,
    WRONG,
    finished_demo,
    further_round,
    judged_run,
    trained,
)

UNPARSED = ("unparsed", "truncated")


def test_judged_rows_come_from_all_three_files(tmp_path):
    folder = judged_run(tmp_path / "run", [RIGHT, TURNED, UNPARSED])
    rows = judged_rows(folder)
    assert [row["verdict"] for row in rows] == [
        "correct", "correct", "correct", "incorrect", "unparsed", "truncated",
    ]  # fmt: skip
    assert {row["id"] for row in rows} == {f"comparison {number}" for number in range(3)}


def test_a_run_without_a_summary_is_an_error_that_names_it(tmp_path):
    folder = judged_run(tmp_path / "run", [RIGHT])
    (folder / "summary.json").unlink()
    with pytest.raises(UserError, match=r"run: no summary\.json; .* has not finished"):
        judged_rows(folder)


def test_a_run_in_which_outcomes_decided_what_was_asked_is_no_evaluation(tmp_path):
    folder = judged_run(tmp_path / "run", [RIGHT])
    summary = folder / "summary.json"
    summary.write_text('{"settings": {"until": "right,wrong"}}')
    with pytest.raises(UserError, match=r"run: sampled with --until right,wrong, .* --until off"):
        judged_rows(folder)
    summary.write_text('{"settings": {"until": "off"}}')
    assert len(judged_rows(folder)) == 2


def test_a_finished_run_without_one_of_its_files_is_no_run(tmp_path):
    folder = judged_run(tmp_path / "run", [RIGHT, WRONG])
    with (folder / "correct.jsonl").open("a") as file:
        file.write('{"id": "compar')
    with pytest.raises(UserError, match=r"run/correct\.jsonl: line 3 after byte 0: "):
        judged_rows(folder)
    (folder / "incorrect.jsonl").unlink()
    (folder / "correct.jsonl").write_text("")
    for read in (judged_rows, read_answers):
        with pytest.raises(UserError, match=r"incorrect\.jsonl: no such file, and a finished"):
            read(folder)


def test_a_stage_that_has_not_finished_is_named(tmp_path):
    runs = finished_demo(tmp_path)
    (runs / "seed0/eval_stage2/sampled/summary.json").unlink()
    with pytest.raises(UserError, match=r"eval_stage2/sampled: no summary\.json"):
        collect(runs, [0])


def test_accuracy_counts_a_comparison_once(tmp_path):
    rows = judged_rows(judged_run(tmp_path / "one", [RIGHT, TURNED, UNPARSED]))
    rows += judged_rows(judged_run(tmp_path / "two", [WRONG, TURNED, RIGHT], sample=1))
    assert accuracy_by_comparison(rows) == {
        "comparison 0": 0.5, "comparison 1": 0.5, "comparison 2": 0.5,
    }  # fmt: skip
    rows += judged_rows(judged_run(tmp_path / "three", [RIGHT]))
    assert accuracy_by_comparison(rows)["comparison 0"] == pytest.approx(4 / 6)


def test_shares_of_a_stage(tmp_path):
    runs = finished_demo(tmp_path, verdicts={"stage1": [RIGHT, WRONG, TURNED, UNPARSED]})
    record = collect(runs, [0])["stages"][1]
    assert record["stage"] == "stage1"
    assert record["title"] == STAGES["stage1"]
    for mode in MODES:
        metrics = record[mode]
        counts = {
            name: (metrics[name]["count"], metrics[name]["of"])
            for name in ("accuracy", "well_formed", "answers_1", "survives_swap")
        }
        assert counts == {
            "accuracy": (3, 8),  # an unparsed or truncated response is wrong
            "well_formed": (6, 8),
            # RIGHT names 1 then 2, WRONG 2 then 1, TURNED the first picture both times.
            "answers_1": (4, 6),
            "survives_swap": (2, 4),
        }
        assert metrics["accuracy"]["share"] == 3 / 8
        right_twice = metrics["right_in_both_orders"]
        assert (right_twice["count"], right_twice["of"]) == (1, 4)


def test_seeds_are_pooled_and_each_is_shown(tmp_path):
    runs = finished_demo(tmp_path, seeds=(3, 5))
    for mode in MODES:
        judged_run(runs / "seed5/eval_stage3" / mode, [RIGHT, WRONG, WRONG, WRONG])
    results = collect(runs, [3, 5])
    assert results["seeds"] == [3, 5]
    by_stage = {record["stage"]: record for record in results["stages"]}
    assert by_stage["base"]["seeds"] == [3]
    assert by_stage["base"]["greedy"]["accuracy"]["of"] == 8
    accuracy = by_stage["stage3"]["greedy"]["accuracy"]
    assert (accuracy["count"], accuracy["of"]) == (10, 16)
    assert by_stage["stage3"]["greedy"]["accuracy_by_seed"] == {"3": 1.0, "5": 0.25}
    # Both seeds answered the same comparisons: each order is paired within its own seed.
    assert by_stage["stage3"]["greedy"]["survives_swap"]["of"] == 8


def test_the_bootstrap_interval_is_over_comparisons(tmp_path):
    runs = finished_demo(tmp_path, verdicts={"stage1": [RIGHT] * 10 + [WRONG] * 10})
    for stage in STAGES:
        if stage != "stage1":
            folder = runs / "eval_base" if stage == "base" else runs / f"seed0/eval_{stage}"
            for mode in MODES:
                judged_run(folder / mode, [RIGHT] * 20)
    accuracy = collect(runs, [0])["stages"][1]["greedy"]["accuracy"]
    assert accuracy["bootstrap_low"] < accuracy["low"] < 0.5
    assert 0.5 < accuracy["high"] < accuracy["bootstrap_high"]


def test_differences_are_paired_by_comparison(tmp_path):
    verdicts = {"base": [WRONG] * 4, "stage1": [RIGHT, WRONG, WRONG, WRONG]}
    results = collect(finished_demo(tmp_path, verdicts=verdicts), [0])
    differences = {
        (entry["before"], entry["after"], entry["mode"]): entry for entry in results["differences"]
    }
    assert len(differences) == len(DIFFERENCES) * len(MODES)
    first = differences["base", "stage1", "greedy"]
    assert first["difference"] == 0.25
    assert first["low"] <= 0.25 <= first["high"]
    assert first["units"] == 4
    assert differences["stage1", "stage2", "sampled"]["difference"] == 0.75
    alike = differences["stage2", "stage3", "greedy"]
    assert (alike["difference"], alike["low"], alike["high"]) == (0, 0, 0)


def test_a_later_round_is_compared_over_the_seeds_that_have_it(tmp_path):
    verdicts = {"stage2": [WRONG] * 4, "stage3": [RIGHT, WRONG, WRONG, WRONG]}
    runs = finished_demo(tmp_path, seeds=(3, 5, 7), verdicts=verdicts)
    for mode in MODES:
        judged_run(runs / "seed7/eval_stage3" / mode, [RIGHT] * 4)
    for seed in (3, 5):
        folder = further_round(runs / f"seed{seed}", 2, [RIGHT, RIGHT, WRONG, WRONG])
        trained(folder / "stage3", steps=8)
    further_round(runs / "seed5", 3, [RIGHT, RIGHT, RIGHT, WRONG])
    results = collect(runs, [3, 5, 7])
    stage3, second, third = results["stages"][-3:]
    assert (stage3["stage"], stage3["title"]) == ("stage3", STAGES["stage3"])
    assert (second["stage"], second["seeds"]) == ("round2", [3, 5])
    assert second["title"] == "stage 3, round 2: DPO (seeds 3, 5)"
    assert second["sampled"]["accuracy_by_seed"] == {"3": 0.5, "5": 0.5}
    assert second["training"]["steps"] == 8
    assert third["title"] == "stage 3, round 3: DPO (seed 5)"
    found = {
        (entry["after"], entry["before"]): (entry["difference"], entry["seeds"])
        for entry in results["differences"]
        if entry["mode"] == "sampled"
    }
    # Without seed 7, of which stage 3 is right everywhere.
    assert found["round2", "stage3"] == (0.25, [3, 5])
    assert found["round2", "stage2"] == (0.5, [3, 5])
    assert found["round3", "round2"] == (0.25, [5])
    assert found["round3", "stage2"] == (0.75, [5])
    assert found["stage3", "stage2"] == (pytest.approx(0.5), [3, 5, 7])
    assert list(results["watch"]) == ["3", "3/round2", "5", "5/round2", "5/round3", "7"]
    assert list(results["pairs"]) == list(results["watch"])


def test_stages_about_other_comparisons_are_not_compared(tmp_path):
    runs = finished_demo(tmp_path)
    judged_run(runs / "seed0/eval_control/sampled", [RIGHT] * 3)
    with pytest.raises(UserError, match="control and stage2 were not evaluated on the same"):
        collect(runs, [0])


def test_the_pace_of_a_training(tmp_path):
    assert training_pace(trained(tmp_path / "stage1", steps=8, seconds=2.0)) == {
        "steps": 8, "seconds_per_step": 0.25,
    }  # fmt: skip
    assert training_pace(tmp_path / "nothing") == {}
    runs = finished_demo(tmp_path / "runs")
    shutil.rmtree(runs / "seed0/control")
    by_stage = {record["stage"]: record for record in collect(runs, [0])["stages"]}
    assert "training" not in by_stage["base"]
    assert by_stage["control"]["training"] == {}
    assert by_stage["stage3"]["training"] == {"steps": 4, "seconds_per_step": 0.5}


def test_the_seconds_of_every_step_are_kept(tmp_path):
    runs = finished_demo(tmp_path)
    assert collect(runs, [0])["step_seconds"] == []
    (runs / "steps.jsonl").write_text('{"step": "pairs", "seconds": 3}\n')
    assert collect(runs, [0])["step_seconds"] == [{"step": "pairs", "seconds": 3}]


def test_a_comparison_that_failed_for_one_stage_is_left_out(tmp_path):
    runs = finished_demo(tmp_path, verdicts=dict.fromkeys(STAGES, [RIGHT] * 40))
    judged_run(runs / "seed0/eval_stage3/greedy", [RIGHT] * 39)
    found = [
        entry
        for entry in collect(runs, [0])["differences"]
        if (entry["after"], entry["before"]) == ("stage3", "stage2")
    ]
    assert [entry["units"] for entry in found] == [39, 40]


def test_several_held_out_files_are_told_apart(tmp_path):
    """Comparisons 0 and 2 are of the first file, 1 and 3 of the second one."""
    verdicts = {"stage2": [RIGHT, RIGHT, WRONG, RIGHT], "stage3": [RIGHT, WRONG, RIGHT, TURNED]}
    runs = finished_demo(tmp_path, seeds=(0, 1), verdicts=verdicts, sources=("a/test", "b/test"))
    results = collect(runs, [0, 1])
    by_stage = {record["stage"]: record for record in results["stages"]}
    for mode in MODES:
        counts = {
            stage: {
                source: (found["count"], found["of"])
                for source, found in by_stage[stage][mode]["accuracy_by_source"].items()
            }
            for stage in ("base", "stage2", "stage3")
        }
        assert counts == {
            "base": {"a/test": (4, 4), "b/test": (4, 4)},  # one model, whatever the seeds
            "stage2": {"a/test": (4, 8), "b/test": (8, 8)},
            "stage3": {"a/test": (8, 8), "b/test": (2, 8)},
        }
        found = by_stage["stage3"][mode]["accuracy_by_source"]["b/test"]
        assert found["low"] < found["share"] == 0.25 < found["high"]
        assert found["bootstrap_low"] <= 0.25 <= found["bootstrap_high"]
        differences = results["differences_by_source"][mode]
        assert {name: (one["difference"], one["units"]) for name, one in differences.items()} == {
            "a/test": (0.5, 2), "b/test": (-0.75, 2),
        }  # fmt: skip
        assert differences["b/test"]["low"] <= -0.75 <= differences["b/test"]["high"]


def test_one_held_out_file_is_not_told_apart(tmp_path):
    results = collect(finished_demo(tmp_path), [0])
    assert "differences_by_source" not in results
    assert not any("accuracy_by_source" in record["greedy"] for record in results["stages"])
