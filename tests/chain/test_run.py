"""What a start of the chain is about: the steps, their order, their commands, and refusals."""

import fcntl
from pathlib import Path

import pytest
from cot_reward.chain.machine import serving_flags
from cot_reward.chain.run import wanted_steps
from cot_reward.chain.settings import Request
from cot_reward.errors import UserError
from helpers.chain import heads, profile, run, steps, value_of
from helpers.environments import REPO
from helpers.rows import read_lines, write_lines

STEPS_OF_A_RUN = [
    "stage1", "stage1_infer", "eval_stage1/greedy", "eval_stage1/sampled", "check_rejection",
    "stage2", "stage2_infer", "eval_stage2/greedy", "eval_stage2/sampled", "pairs", "check_pairs",
    "stage3", "eval_stage3/greedy", "eval_stage3/sampled", "check_stage3",
]  # fmt: skip


def test_real_and_demo_have_the_same_steps() -> None:
    first = ["check_cold_start", "template", "eval_base/greedy", "eval_base/sampled"]
    assert list(steps()) == ["fetch_base", *first, *STEPS_OF_A_RUN, "report"]
    demo = list(steps("configs/demo/chain.yaml", 0, "--seeds", "0", "1", "--hot-samples", "2"))
    own = {
        "validate_stage2",
        "validate_stage3",
        "stage2_infer_hot",
        "control",
        "eval_control/greedy",
        "eval_control/sampled",
        "check_control_rejection",
        "control_rejection",
        "eval_control_rejection/greedy",
        "eval_control_rejection/sampled",
    }
    for seed in ("seed0/", "seed1/"):
        of_seed = [name.removeprefix(seed) for name in demo if name.startswith(seed)]
        assert [name for name in of_seed if name not in own] == STEPS_OF_A_RUN
        assert own <= set(of_seed)
    assert demo[:5] == ["world", *first]


def test_every_inference_uses_the_derived_template_and_the_model_that_it_names() -> None:
    found = [step for step in steps("configs/one_gpu/chain.yaml", 1).values() if step.model]
    assert len(found) == 10
    for step in found:
        assert value_of(step, "--template") == ["runs/one_gpu/template.txt"]
        assert value_of(step, "--model") == [str(step.model)]
        assert Path("runs/one_gpu/template.txt") in step.inputs
        assert step.model in step.inputs
    assert {str(step.model) for step in found} == {
        "runs/one_gpu/base", "runs/one_gpu/stage1_merged", "runs/one_gpu/stage2_merged",
        "runs/one_gpu/stage3",
    }  # fmt: skip


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen3_5"])
def test_a_familys_template_goes_to_every_training_and_export(family: str) -> None:
    template = f"template={family}_nothink"
    trainings = [step for step in steps(f"configs/{family}/chain.yaml").values() if step.sft]
    assert len(trainings) == 2
    assert all(template in step.command for step in trainings)
    lora = steps("configs/one_gpu/chain.yaml", 1, "--sft-template", f"{family}_nothink")
    exports = [step for step in lora.values() if step.trains in ("sft", "export")]
    assert len(exports) == 4
    assert all(template in step.command for step in exports)
    plain = steps("configs/one_gpu/chain.yaml", 1).values()
    assert not [step for step in plain if any("template=" in part for part in step.command)]


def test_the_world_is_made_with_the_family_that_is_asked_for() -> None:
    world = steps("configs/demo/chain.yaml", 0, "--world-family", "qwen3_vl")["world"]
    assert value_of(world, "--family") == ["qwen3_vl"]
    assert "--family" not in steps("configs/demo/chain.yaml", 0)["world"].command


def test_released_models_answer_the_held_out_data_once() -> None:
    flags = ["--seeds", "0", "1", "--compared", "models/think-7b", "models/base"]
    plain, found = steps(), steps("configs/chain.yaml", 8, *flags)
    added = [name for name in found if name.startswith("eval_compared_")]
    assert added == [
        f"eval_compared_{model}/{mode}"
        for model in ("think-7b", "base") for mode in ("greedy", "sampled")
    ]  # fmt: skip
    assert not [name for name in plain if "compared" in name]
    assert list(found)[-1] == "report"
    step, own = found["eval_compared_think-7b/sampled"], found["eval_base/sampled"]
    assert step.model == Path("models/think-7b")
    assert value_of(step, "--data") == value_of(own, "--data")
    assert value_of(step, "--template") == value_of(own, "--template")
    own_prompt = steps("configs/chain.yaml", 8, *flags, "--compared-template", "other.txt")
    step = own_prompt["eval_compared_base/greedy"]
    assert value_of(step, "--template") == ["other.txt"]
    assert Path("other.txt") in step.inputs
    assert value_of(own_prompt["eval_base/greedy"], "--template") == value_of(own, "--template")


def test_both_passes_ask_the_same_comparisons() -> None:
    found = steps()
    assert value_of(found["stage1_infer"], "--data") == [
        "dataset/EvalMuse/pairwise/train_data.json"
    ]
    assert value_of(found["stage2_infer"], "--data") == [
        f"runs/stage1_infer/{name}.jsonl" for name in ("correct", "incorrect", "unusable")
    ]
    wrong = steps("configs/demo/chain.yaml", 0)["seed0/stage2_infer"]
    assert value_of(wrong, "--data") == [
        "runs/demo/seed0/stage1_infer/incorrect.jsonl", "dataset/demo/dpo.json"
    ]  # fmt: skip
    assert value_of(wrong, "--image-root") == ["dataset", "dataset/demo/images"]


def test_until_is_for_passes_of_more_samples_than_a_round_and_for_no_evaluation() -> None:
    def until(*flags: str) -> dict[str, list[str]]:
        found = steps("configs/chain.yaml", 8, "--hot-samples", "2", *flags).values()
        return {step.name: value_of(step, "--until") for step in found if "--until" in step.command}

    evaluations = {
        f"eval_{stage}/{mode}": ["off"]
        for stage in ("base", "stage1", "stage2", "stage3")
        for mode in ("greedy", "sampled")
    }
    assert until() == evaluations
    passes = {name: ["right,wrong"] for name in ("stage1_infer", "stage2_infer")}
    assert until("--until", "right,wrong") == evaluations | passes
    hot = steps("configs/chain.yaml", 8, "--hot-samples", "2", "--until", "wrong", "--first", "1")
    assert value_of(hot["stage2_infer_hot"], "--first") == ["1"]
    # A pass that is done asks for more, or for what was not needed, and does not start anew.
    plain = steps()["stage1_infer"].added_flags
    assert hot["stage1_infer"].added_flags == plain | {"until": "wrong", "first": "1"}
    assert not plain.keys() & {"until", "first"}
    with pytest.raises(UserError, match="first 4, which is already every text of passes of 4"):
        profile("configs/chain.yaml", "--until", "right", "--first", "4")


def test_pairs_take_wrong_texts_of_both_passes_and_leave_held_out_data_out() -> None:
    pairs = steps()["pairs"]
    assert value_of(pairs, "--correct") == ["runs/stage2_infer/correct.jsonl"]
    assert value_of(pairs, "--incorrect") == [
        "runs/stage1_infer/incorrect.jsonl", "runs/stage2_infer/incorrect.jsonl"
    ]  # fmt: skip
    assert value_of(pairs, "--exclude") == ["dataset/HPD/test_data.json"]


def test_the_second_control_goes_on_from_stage_2_with_the_right_texts_of_its_pass() -> None:
    flags = ["--control-rejection", "configs/one_gpu/rejection.yaml"]
    flags += ["--control-rejection-export", "configs/one_gpu/rejection_export.yaml"]
    found = steps("configs/one_gpu/chain.yaml", 1, *flags)
    assert list(found)[-6:-1] == [
        "check_control_rejection", "control_rejection", "control_rejection_merged",
        "eval_control_rejection/greedy", "eval_control_rejection/sampled",
    ]  # fmt: skip
    run, rows = "runs/one_gpu", Path("runs/one_gpu/stage2_infer/correct.jsonl")
    check, training = found["check_control_rejection"], found["control_rejection"]
    assert check.command[2] == str(rows)
    assert value_of(check, "--exclude") == ["dataset/HPD/test_data.json"]
    assert set(training.command) > {
        f"model_name_or_path={run}/stage2_merged", "dataset=control_rejection",
        f"dataset_dir={run}", f"output_dir={run}/control_rejection",
    }  # fmt: skip
    assert {Path(f"{run}/stage2_merged"), rows} < set(training.inputs)
    evaluated = found["eval_control_rejection/sampled"].model
    assert evaluated == Path(f"{run}/control_rejection_merged")
    assert not [name for name in steps("configs/one_gpu/chain.yaml", 1) if "rejection" in name][1:]


TRAINING_POOLS = ("stage1_infer", "stage2_infer", "stage2_infer_hot")
TRAINING_ROWS = ("check_cold_start", "check_rejection", "check_pairs")


def test_held_out_data_reach_every_step_that_makes_or_checks_training_rows() -> None:
    found = steps("configs/chain.yaml", 8, "--hot-samples", "2")
    excluding = {name for name, step in found.items() if "--exclude" in step.command}
    assert excluding == {*TRAINING_POOLS, *TRAINING_ROWS, "pairs"}
    heldout = Path("dataset/HPD/test_data.json")
    for name in (*TRAINING_POOLS, *TRAINING_ROWS):
        assert value_of(found[name], "--exclude") == [str(heldout)]
        assert value_of(found[name], "--exclude-image-root") == ["dataset/HPD/images"]
    for name in TRAINING_POOLS:
        # Other held-out data are followed without asking anything again.
        assert heldout in found[name].added_inputs
        assert heldout not in found[name].inputs
    for name in TRAINING_ROWS:
        assert heldout in found[name].inputs


def test_cold_start_rows_below_a_root_of_their_own_are_not_compared() -> None:
    """Keys below two roots differ; the check would prove nothing."""
    own = steps(
        "configs/chain.yaml", 8, "--cold-start-media-root", "dataset/ImageGen-CoT-Reward-5K"
    )
    assert "--exclude" not in own["check_cold_start"].command
    assert "--exclude" in own["check_rejection"].command


def test_gpus_reach_every_trainer_and_server() -> None:
    found = steps(gpus=4)
    assert found["stage1"].environment["NPROC_PER_NODE"] == "4"
    assert found["stage1"].environment["FORCE_TORCHRUN"] == "1"
    assert value_of(found["stage3"], "--num_processes") == ["4", "scripts/DPO_VL.py"]
    flags = ["--tensor-parallel-size", "2", "--data-parallel-size", "2"]
    assert serving_flags(profile("configs/chain.yaml", "--tensor-parallel", "2"), 4) == flags
    with pytest.raises(UserError, match="more than the 4 GPUs"):
        serving_flags(profile("configs/chain.yaml", "--data-parallel", "8"), 4)


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (Request(only=["stage1"]), ["seed0/stage1", "seed1/stage1"]),
        (Request(only=["seed1/stage1"]), ["seed1/stage1"]),
        (Request(only=["eval_base"]), ["eval_base/greedy", "eval_base/sampled"]),
        (Request(first="seed1/eval_control_rejection"), [
            "seed1/eval_control_rejection/greedy", "seed1/eval_control_rejection/sampled",
            "report",
        ]),
        (Request(last="template"), ["world", "check_cold_start", "template"]),
    ],
)  # fmt: skip
def test_a_start_is_about_the_steps_that_it_names(request_: Request, expected: list[str]) -> None:
    every = list(steps("configs/demo/chain.yaml", 0, "--seeds", "0", "1").values())
    assert [step.name for step in wanted_steps(every, request_)] == expected


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request(only=["stage4"]), "no step 'stage4'. Did you mean 'stage"),
        (Request(only=["pairs"], first="stage1"), "--only does not go with"),
        (Request(first="report", last="stage1"), "--from report comes after --to stage1"),
    ],
)
def test_an_impossible_wish_is_refused(request_: Request, message: str) -> None:
    with pytest.raises(UserError) as error:
        wanted_steps(list(steps().values()), request_)
    assert message in str(error.value)


def test_a_dry_run_shows_the_real_chain_and_what_is_missing(tmp_path: Path) -> None:
    done = run("--dry-run", "--runs", str(tmp_path / "runs"))
    assert done.returncode == 0, done.stderr
    listed = [line for line in done.stdout.splitlines() if line.startswith("left ")]
    assert [line.split()[1].rstrip(":") for line in listed] == list(steps())
    assert "llamafactory-cli train configs/qwen_cold_start.yaml" in done.stdout
    assert "scripts/DPO_VL.py --config configs/dpo.yaml" in done.stdout
    assert "cold_start: dataset/ImageGen-CoT-Reward-5K/train_data.json" in done.stdout
    assert not (tmp_path / "runs").exists()


def test_missing_data_are_named_before_anything_starts(tmp_path: Path) -> None:
    done = run("--runs", str(tmp_path / "runs"))
    assert done.returncode == 2
    assert "error: the profile names what is not there:" in done.stderr
    assert "sampling: dataset/EvalMuse/pairwise/train_data.json" in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--second-pass", "none"], "stage 2's model would answer nothing"),
        (["--sampling-image-root", "a", "b"], "sampling has 1 files and sampling_image_root 2"),
        (["--seeds", "1", "1"], "each seed may stand there once"),
        (["--samples", "0"], "samples is 0"),
        (["--compared", "a/x", "b/x"], "compared has two folders of one name: x, x"),
        (["--rounds", "0"], "rounds is 0"),
        (["--gpus", "64"], "the profile asks for 64 GPUs"),
        (["--stagee1", "x"], "Did you mean '--stage1'?"),
    ],
)
def test_a_profile_that_makes_no_sense_is_refused(flags: list[str], message: str) -> None:
    done = run("--dry-run", *flags)
    assert done.returncode == 2
    assert message in done.stderr


# --- real steps: those that need no engine --------------------------------------------------------


def test_cold_start_rows_about_held_out_comparisons_end_the_chain(
    small: list[str], tmp_path: Path
) -> None:
    rows = read_lines(REPO / "dataset/sample/comparisons.jsonl")
    write_lines(tmp_path / "heldout.jsonl", rows[:1])
    done = run(*small, "--to", "template")
    assert done.returncode == 2
    assert "cold_start.json: row 1: held_out: it is about the held-out comparison" in done.stdout
    assert "check_cold_start ended with exit code 1" in done.stderr


def test_finished_steps_are_left_and_changed_rows_make_them_run_again(
    small: list[str], tmp_path: Path
) -> None:
    first = run(*small, "--to", "template")
    assert first.returncode == 0, first.stdout + first.stderr
    assert [head.endswith("(not done yet)") for head in heads(first)] == [True, True]
    # The printed command is the one that ran.
    assert f"derive_template.py {tmp_path}/cold_start.json --out {tmp_path}/runs/template.txt" in (
        first.stdout
    )
    template = (tmp_path / "runs/template.txt").read_text()
    assert "{caption}" in template
    assert heads(run(*small, "--to", "template")) == [
        "== check_cold_start: done", "== template: done"
    ]  # fmt: skip
    rows = tmp_path / "cold_start.json"
    rows.write_text(rows.read_text().replace("Judge", "Decide"))
    again = run(*small, "--to", "template")
    assert [f"({rows} has changed)" in head for head in heads(again)] == [True, True]
    assert (tmp_path / "runs/template.txt").read_text() == template.replace("Judge", "Decide")


def test_a_bad_row_stops_the_chain_before_a_training(small: list[str], tmp_path: Path) -> None:
    rows = tmp_path / "cold_start.json"
    rows.write_text(rows.read_text().replace("_1.png", "_9.png", 1))
    stopped = run(*small)
    assert stopped.returncode == 2
    assert "check_cold_start ended with exit code 1" in stopped.stderr
    assert "no such file below the media root" in stopped.stdout
    assert len(heads(stopped)) == 1


def test_a_result_made_by_hand_is_not_overwritten_and_can_be_adopted(
    small: list[str], tmp_path: Path
) -> None:
    stage1 = tmp_path / "runs/stage1"
    stage1.mkdir(parents=True)
    (stage1 / "model.safetensors").write_bytes(b"by hand")
    refused = run(*small, "--only", "stage1")
    assert refused.returncode == 2
    assert f"{stage1} is not empty, and this chain did not fill it" in refused.stderr
    unfinished = run(*small, "--only", "stage1", "--adopt")
    assert "trainer_state.json is missing; this is no finished result" in unfinished.stderr
    (stage1 / "trainer_state.json").write_text("{}")
    assert run(*small, "--only", "stage1", "--adopt").returncode == 0
    assert (stage1 / "model.safetensors").read_bytes() == b"by hand"
    assert "done  stage1:" in run(*small, "--dry-run").stdout
    (tmp_path / "base/config.json").write_text('{"other": 1}')
    assert f"left  stage1: cold start ({tmp_path}/base has changed)" in (
        run(*small, "--dry-run").stdout
    )


def test_a_second_chain_in_one_folder_is_refused(small: list[str], tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    with (tmp_path / "runs/.chain.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        refused = run(*small, "--to", "template")
    assert refused.returncode == 2
    assert "another chain is working there" in refused.stderr


def test_a_server_that_runs_elsewhere_is_asked_for_the_step_s_model(small: list[str]) -> None:
    shown = run(*small, "--dry-run", "--base-url", "http://gpu-host:9/v1").stdout
    assert "scripts/serve.sh" not in shown
    asked = [line for line in shown.splitlines() if "image_stream_gpt.py" in line]
    assert len(asked) == 10
    assert all("--base-url http://gpu-host:9/v1 --model " in line for line in asked)
