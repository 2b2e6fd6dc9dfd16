"""Rounds of DPO: their steps and commands, and starts of the chain that end or go on with them.

The starts record all steps that need an engine as done; what compares the models and writes the
report runs.
"""

import json
from pathlib import Path

import pytest
from cot_reward.chain.run import wanted_steps
from cot_reward.chain.settings import Request
from helpers.chain import answer, heads, profile, record_as_done, run, steps, value_of
from helpers.evaluation import RIGHT, WRONG

DEMO = "configs/demo/chain.yaml"
ROUND = [
    "infer", "pairs", "check_pairs", "stage3", "eval_stage3/greedy", "eval_stage3/sampled",
    "validate_stage3", "check_stage3",
]  # fmt: skip


def test_a_round_follows_the_controls_and_has_steps_of_its_own_names() -> None:
    names = list(steps(DEMO, 0, "--seeds", "0", "1", "--rounds", "3"))
    for seed in ("seed0", "seed1"):
        first = names.index(f"{seed}/eval_control_rejection/sampled") + 1
        expected = [f"{seed}/{folder}/{name}" for folder in ("round2", "round3") for name in ROUND]
        assert names[first : first + len(expected)] == expected
    assert len(names) == len(set(names))
    assert not [name for name in steps(DEMO, 0) if "round" in name]


def test_a_round_goes_on_from_the_model_and_the_wrong_texts_of_the_one_before() -> None:
    found = steps(DEMO, 0, "--rounds", "3", "--hot-samples", "2", "--second-samples", "6")
    run = "runs/demo/seed0"
    second_passes = [
        f"{run}/{name}/incorrect.jsonl" for name in ("stage2_infer", "stage2_infer_hot")
    ]
    earlier = {2: second_passes, 3: [f"{run}/round2/infer/incorrect.jsonl"]}
    before = {2: run, 3: f"{run}/round2"}
    for number in (2, 3):
        folder = f"{run}/round{number}"
        of_round = {name: found[f"seed0/round{number}/{name}"] for name in ROUND}
        infer, pairs, dpo = of_round["infer"], of_round["pairs"], of_round["stage3"]
        assert str(infer.model) == f"{before[number]}/stage3"
        assert value_of(infer, "--model") == [f"{before[number]}/stage3"]
        assert value_of(infer, "--data") == earlier[number]
        assert set(value_of(infer, "--image-root")) == {"dataset"}
        assert value_of(infer, "--num-samples") == ["6"]
        assert value_of(infer, "--exclude") == [
            f"dataset/demo/{pool}.json" for pool in ("heldout", "heldout_new", "validation")
        ]
        assert value_of(pairs, "--correct") == [f"{folder}/infer/correct.jsonl"]
        assert value_of(pairs, "--incorrect") == [
            *earlier[number], f"{folder}/infer/incorrect.jsonl"
        ]  # fmt: skip
        assert of_round["check_pairs"].command[2] == f"{folder}/pairs/train.jsonl"
        assert value_of(dpo, "--config") == ["configs/demo/dpo.yaml"]
        assert value_of(dpo, "--model_name_or_path") == [f"{before[number]}/stage3"]
        assert value_of(dpo, "--data_path") == [f"{folder}/pairs/train.jsonl"]
        assert value_of(dpo, "--output_dir") == [f"{folder}/stage3"]
        assert str(of_round["eval_stage3/greedy"].model) == f"{folder}/stage3"
        assert value_of(of_round["check_stage3"], "--before") == [
            f"{before[number]}/validate_stage3"
        ]
        assert value_of(of_round["check_stage3"], "--after") == [f"{folder}/validate_stage3"]
    assert value_of(found["seed0/check_stage3"], "--before") == [f"{run}/validate_stage2"]


def test_without_validation_data_the_held_out_ones_watch_a_round() -> None:
    check = steps("configs/chain.yaml", 8, "--rounds", "2")["round2/check_stage3"]
    assert value_of(check, "--before") == ["runs/eval_stage3/sampled"]
    assert value_of(check, "--after") == ["runs/round2/eval_stage3/sampled"]


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (Request(only=["stage3"]), ["stage3"]),
        (Request(only=["round2/stage3"]), ["round2/stage3"]),
        (Request(only=["round2/eval_stage3"]), [
            "round2/eval_stage3/greedy", "round2/eval_stage3/sampled",
        ]),
        (Request(first="pairs", last="stage3"), ["pairs", "check_pairs", "stage3"]),
        (Request(first="round2", last="round2/pairs"), ["round2/infer", "round2/pairs"]),
        (Request(first="round2/check_stage3"), ["round2/check_stage3", "report"]),
    ],
)  # fmt: skip
def test_a_name_without_a_round_is_of_the_first_one(request_: Request, expected: list[str]) -> None:
    every = list(steps("configs/chain.yaml", 8, "--rounds", "2").values())
    assert [step.name for step in wanted_steps(every, request_)] == expected


# --- starts ---------------------------------------------------------------------------------------


@pytest.fixture
def flags(small: list[str], tmp_path: Path) -> list[str]:
    """Flags of a chain of three rounds with validation data."""
    validation = tmp_path / "validation.jsonl"
    validation.write_text((tmp_path / "heldout.jsonl").read_text())
    return [
        *small, "--validation", str(validation), "--validation-image-root", "dataset/sample",
        "--rounds", "3",
    ]  # fmt: skip


def right(count: int) -> list[tuple[str, str]]:
    """Verdicts about 20 comparisons, so many of which are right."""
    return [RIGHT] * count + [WRONG] * (20 - count)


def validated(flags: list[str], *accuracies: int, rounds: int) -> Path:
    """All steps of so many rounds are done but comparisons and report; the folder of results.

    accuracies: right ones of 20 on validation: of stage 2, of round 1, ...
    """
    found = steps("configs/chain.yaml", 0, *flags)
    runs = profile("configs/chain.yaml", *flags).runs
    folders = [runs / "validate_stage2", runs / "validate_stage3"]
    folders += [runs / f"round{number}/validate_stage3" for number in range(2, rounds + 1)]
    for folder, count in zip(folders, accuracies, strict=True):
        answer(folder, right(count))
    later = [f"round{number}/" for number in range(rounds + 1, 4)]
    is_left = ("check_stage3", "report")
    record_as_done(
        [
            step
            for name, step in found.items()
            if not name.endswith(is_left) and not name.startswith(tuple(later))
        ],
        runs, right(10),
    )  # fmt: skip
    return runs


def test_rounds_end_where_validation_no_longer_rises_and_so_does_a_later_start(
    flags: list[str],
) -> None:
    runs = validated(flags, 10, 14, 12, rounds=2)
    unknown = run(*flags, "--dry-run").stdout
    assert "done  round2/infer:" in unknown
    assert "only if validation rises in check_stage3)" in unknown.split("left  round3/infer:")[1]
    first = run(*flags)
    assert first.returncode == 0, first.stdout + first.stderr
    reason = "not needed: validation no longer rises (round2/check_stage3: accuracy 70.0 -> 60.0)"
    assert f"== round3/infer: {reason}" in heads(first)
    assert f"== round3/check_stage3: {reason}" in heads(first)
    assert "round2/stage3 is no better than" in first.stdout
    assert str((runs / "result").readlink()) == "stage3"
    assert "| stage 3, round 2: DPO | greedy |" in first.stdout
    results = json.loads((runs / "results.json").read_text())
    assert list(results["watch"]) == ["", "round2"]
    # The same decision, from what stands on disk.
    again = run(*flags)
    assert again.returncode == 0
    ran = [head for head in heads(again) if not head.endswith(": done")]
    assert [head for head in ran if reason not in head] == [
        "== report: the table, plots and page (made anew each time)"
    ]
    assert str((runs / "result").readlink()) == "stage3"
    assert f"skip  round3/infer: the pass of round 3 ({reason})" in run(*flags, "--dry-run").stdout
    # With another stage 3 all is open again.
    anew = run(*flags, "--dry-run", "--stage3", "configs/demo/dpo.yaml").stdout
    assert "left  round3/infer:" in anew
    assert "only if validation rises in check_stage3)" in anew.split("left  round3/infer:")[1]


def test_a_round_goes_on_where_validation_rose_whatever_the_held_out_data_say(
    flags: list[str],
) -> None:
    runs = validated(flags, 10, 14, 16, rounds=2)
    # On the held-out data round 2 is far worse than stage 3.
    answer(runs / "round2/eval_stage3/sampled", right(1))
    stopped = run(*flags)
    assert stopped.returncode == 2
    assert "== round3/infer: the pass of round 3 (not done yet)" in heads(stopped)
    assert not [head for head in heads(stopped) if "not needed" in head]


def test_the_result_is_the_last_round_that_rose(flags: list[str]) -> None:
    runs = validated(flags, 10, 14, 16, 18, rounds=3)
    done = run(*flags)
    assert done.returncode == 0, done.stdout + done.stderr
    assert str((runs / "result").readlink()) == "round3/stage3"
    # Fewer rounds are wanted now.
    assert run(*flags, "--rounds", "2").returncode == 0
    assert str((runs / "result").readlink()) == "round2/stage3"


def test_a_worse_stage_3_has_no_later_rounds_and_its_exit_code(flags: list[str]) -> None:
    runs = validated(flags, 18, 6, rounds=1)
    done = run(*flags)
    assert done.returncode == 4
    assert "(check_stage3: accuracy 90.0 -> 30.0; accuracy fell" in heads(done)[-2]
    assert str((runs / "result").readlink()) == "stage2"
