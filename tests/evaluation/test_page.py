"""The table's cells, the plots and the files of a report, on small folders of judged runs."""

import json
import subprocess
from pathlib import Path

import pytest
from cot_reward.evaluation.collect import MODES, STAGES, collect
from cot_reward.evaluation.page import plot_curves, plot_stages, table, write_report
from helpers.environments import PYTHON, REPO
from helpers.evaluation import (
    RIGHT,
    TURNED,
    WRONG,
    finished_demo,
    further_round,
    judged_run,
    trained,
)
from PIL import Image

# Twenty comparisons, so that the intervals of clear differences exclude 0.
VERDICTS = {
    "base": [("unparsed", "unparsed")] * 20,
    "stage1": [RIGHT] * 10 + [TURNED] * 5 + [WRONG] * 5,
    "stage2": [RIGHT] * 20,
    "control": [RIGHT] * 10 + [WRONG] * 10,
    "control_rejection": [RIGHT] * 15 + [WRONG] * 5,
    "stage3": [RIGHT] * 20,
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_demo(tmp_path_factory.mktemp("demo"), verdicts=VERDICTS)


def cells(text: str, first: str) -> list[list[str]]:
    """The cells of every line of a table that begins with this cell."""
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line] for line in lines]
    return [row for row in rows if row[0] == first]


def image_size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
        return image.size


def test_the_cells_of_a_stage(runs: Path) -> None:
    text = table(collect(runs, [0]))
    (row,) = cells(text, "stage 1: cold start")
    assert row == [
        "stage 1: cold start",
        "greedy",
        "62.5 [47.0, 75.8]",  # 25 of 40, Wilson
        "100.0",
        "100.0",
        "62.5",  # TURNED names the first picture in both orders: 20 + 5 of 40
        "75.0",
        "50.0 [29.9, 70.1]",
        "0.50",
    ]
    (row,) = cells(text, "base")[:1]
    assert row[2:5] == ["0.0 [0.0, 8.8]", "0.0", "0.0"]
    assert row[-1] == ""  # the base was not trained by the chain
    sampled = cells(text, "")
    assert len(sampled) == len(STAGES)
    assert all(row[1] == "T=1" and row[-1] == "" for row in sampled)


def test_differences_say_what_their_interval_says(runs: Path) -> None:
    text = table(collect(runs, [0]))
    lines = [line.strip("| ").split(" | ") for line in text.split("| from |")[1].splitlines()[2:]]
    found = {(before, after): rest for before, after, *rest in lines}
    assert found["base", "stage1"][-1] == "better"
    assert found["base", "stage1"][0].startswith("+62.5 [+")
    assert found["stage2", "control"][-1] == "worse"
    assert found["stage2", "control"][0].startswith("-50.0 [-")
    assert found["control_rejection", "stage3"][0].startswith("+25.0 [+")
    assert found["stage2", "stage3"] == ["+0.0 [+0.0, +0.0]"] * 2 + ["no clear difference"]


def test_the_table_names_its_seeds(tmp_path: Path) -> None:
    runs = finished_demo(tmp_path, seeds=(1, 2))
    assert "pooled over the seeds 1, 2." in table(collect(runs, [1, 2])).splitlines()[0]


def test_plots_are_images(runs: Path, tmp_path: Path) -> None:
    plot_stages(collect(runs, [0]), tmp_path / "stages.png")
    drawn = plot_curves(runs / "seed0", tmp_path / "curves")
    assert {path.name for path in drawn} == {
        "stage1_loss.png", "stage2_loss.png", "control_rejection_loss.png", "dpo_loss.png",
        "dpo_rewards.png", "dpo_reward_accuracy.png",
    }  # fmt: skip
    for path in [tmp_path / "stages.png", *drawn]:
        width, height = image_size(path)
        assert width > 300
        assert height > 200


def test_a_curve_without_values_is_not_drawn(tmp_path: Path) -> None:
    runs = finished_demo(tmp_path / "runs")
    state = trained(runs / "seed0/stage2", steps=0) / "trainer_state.json"
    assert "loss" not in state.read_text()
    drawn = plot_curves(runs / "seed0", tmp_path / "curves")
    assert len(drawn) == 5
    assert not (tmp_path / "curves/stage2_loss.png").exists()


def test_a_report_leaves_all_its_files(runs: Path) -> None:
    printed = write_report(runs, [0])
    assert (runs / "results.md").read_text() == table(collect(runs, [0]))
    assert printed.startswith((runs / "results.md").read_text())
    assert printed.endswith(f"{runs}/results.json, 7 plots in {runs}/curves\n")
    results = json.loads((runs / "results.json").read_text())
    assert list(results) == [
        "seeds", "stages", "differences", "pairs", "watch", "step_seconds"
    ]  # fmt: skip
    assert [record["stage"] for record in results["stages"]] == list(STAGES)
    assert len(list((runs / "curves").glob("*.png"))) == 7


def test_the_script_prints_the_table_and_names_a_run_that_is_missing(tmp_path: Path) -> None:
    command = [PYTHON, "scripts/report.py", "--runs", tmp_path, "--seeds", "0"]
    missing = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
    assert missing.returncode == 2
    assert "eval_base/greedy: no summary.json" in missing.stderr
    assert "Traceback" not in missing.stderr
    finished_demo(tmp_path)
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=True)
    assert "| stage 3: DPO | greedy | 100.0 [67.6, 100.0] |" in done.stdout


def test_a_chain_without_seeds_and_control_has_its_table_and_its_pairs(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for stage in ("base", "stage1", "stage2", "stage3"):
        for mode in MODES:
            judged_run(runs / f"eval_{stage}" / mode, [RIGHT] * 4)
        if stage != "base":
            trained(runs / stage)
    summary = {
        "pairs": 12, "comparisons": 10, "chosen_answer": {"1": 6, "2": 6},
        "pair_kinds": {"same_model": 5, "published": 7, "other_cross_model": 0},
        "rejected_from_first_pass": 7, "shortcut": {"words": 0.5, "length": None},
    }  # fmt: skip
    (runs / "pairs").mkdir()
    (runs / "pairs/summary.json").write_text(json.dumps(summary))
    printed = write_report(runs, [])
    assert "Wilson intervals.\n" in printed
    assert "control" not in printed
    assert "| - | 12 | 10 | 5 | 7 | 6 / 6 | 0.50 | - |" in printed.splitlines()
    assert (runs / "curves/stages.png").is_file()


def test_a_later_round_has_its_row_its_differences_and_its_curves(tmp_path: Path) -> None:
    runs = finished_demo(tmp_path / "runs", seeds=[0, 1], verdicts=VERDICTS)
    further_round(runs / "seed0", 2, [RIGHT] * 15 + [WRONG] * 5)
    text = table(collect(runs, [0, 1]))
    (row,) = cells(text, "stage 3, round 2: DPO (seed 0)")
    assert row[2].startswith("75.0 [")
    (row,) = [row for row in cells(text, "stage3") if row[1].startswith("round2")]
    assert row[1] == "round2 (seed 0)"
    assert row[2].startswith("-25.0 [")
    drawn = {path.name for path in plot_curves(runs / "seed0", tmp_path / "curves")}
    assert {"dpo_loss.png", "dpo_round2_loss.png", "dpo_round2_rewards.png"} < drawn
    drawn = {path.name for path in plot_curves(runs / "seed1", tmp_path / "others")}
    assert not any("round" in name for name in drawn)


def test_the_watch_stands_below_the_table(tmp_path: Path) -> None:
    runs = finished_demo(tmp_path / "runs", seeds=[0, 1], verdicts=VERDICTS)
    assert "Stage 3 less stage 2 on" not in table(collect(runs, [0, 1]))
    figure = {"difference": -0.1, "low": -0.15, "high": -0.05}
    names = ("accuracy", "well_formed", "coherent", "survives_swap", "answers_1")
    found = {"fell": ["accuracy"], "figures": dict.fromkeys(names, figure)}
    (runs / "seed1/check_stage3.json").write_text(json.dumps(found))
    text = table(collect(runs, [0, 1])).split("Stage 3 less stage 2 on")[1]
    assert cells(text, "0") == []
    assert cells(text, "1") == [["1", *["-10.0 [-15.0, -5.0]"] * 5, "accuracy"]]


def test_several_held_out_files_have_a_table(tmp_path: Path) -> None:
    runs = finished_demo(tmp_path, verdicts=VERDICTS, sources=("a/test", "b/test"))
    text = table(collect(runs, [0]))
    assert "by source" not in table(collect(finished_demo(tmp_path / "one"), [0]))
    part = text.split("Held-out accuracy by source")[1]
    assert cells(part, "stage") == [["stage", "decoding", "a/test", "b/test"]]
    assert cells(part, "stage 3: DPO") == [
        ["stage 3: DPO", "greedy", "100.0 [83.9, 100.0]", "100.0 [83.9, 100.0]"]
    ]
    (control,) = cells(part, "control: SFT on the chosen")
    assert control[2].startswith("50.0 [")
    assert cells(part, "stage 3 less stage 2") == [
        ["stage 3 less stage 2", "greedy", *["+0.0 [+0.0, +0.0]"] * 2]
    ]
