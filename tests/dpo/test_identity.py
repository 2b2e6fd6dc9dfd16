"""A run goes on with, and replaces, only what was made from the same data, model and settings."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from cot_reward.dpo import run
from cot_reward.errors import UserError
from helpers.dpo import FORM, save_model, trainer_for, varied, write
from safetensors.torch import load_file
from torch import equal
from transformers import TrainerCallback

SAVING = ("--save_strategy", "steps", "--save_steps", "1", "--save_total_limit", "2")
LENGTH = ("--max_steps", "2")
RESUME = ("--resume_from_checkpoint", "true")


@pytest.fixture(scope="module")
def finished(
    base: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    """A file of pairs, and the output of a run of two steps on it."""
    work = tmp_path_factory.mktemp("finished")
    pairs = write(work / "pairs.jsonl", varied(8, form=FORM))
    run.train(*with_settings(trainer_for(base, folder, pairs, work / "out", *SAVING, *LENGTH)))
    return pairs, work / "out"


def with_settings(built: tuple[Any, Any]) -> tuple[Any, ...]:
    """The arguments of `run.train`."""
    trainer, parsed = built
    return (trainer, *parsed)


@pytest.fixture
def output(finished: tuple[str, Path], tmp_path: Path) -> Path:
    """A copy of the finished output, with a copy of its pairs beside it."""
    shutil.copy(finished[0], tmp_path / "pairs.jsonl")
    return Path(shutil.copytree(finished[1], tmp_path / "out"))


def test_a_run_says_what_it_is_made_from(output: Path) -> None:
    records = [
        json.loads((output / name / "run.json").read_text())["record"]
        for name in (".", "checkpoint-1", "checkpoint-2")
    ]
    assert records[0] == records[1] == records[2]
    assert records[0]["learning_rate"] == 1e-4
    assert records[0]["processes"] == 1
    assert len(records[0]["model"]) == len(records[0]["data (sha256)"]) == 64
    assert not {"output_dir", "save_steps", "hub_token"} & records[0].keys()


@pytest.mark.parametrize(
    ("flags", "difference"),
    [
        (["--learning_rate", "2e-4"], "learning_rate is 0.0001 there and 0.0002 here"),
        (["--seed", "7"], "seed is 0 there and 7 here"),
        (
            ["--gradient_accumulation_steps", "4"],
            "gradient_accumulation_steps is 1 there and 4 here",
        ),
        (["--per_device_train_batch_size", "4"], "per_device_train_batch_size is 2 there and 4 h"),
        (
            ["--loss_type", "ipo", "sft"],
            "loss_type is ['sigmoid', 'sft'] there and ['ipo', 'sft'] ",
        ),
        (["--use_peft"], "use_peft is False there and True here"),
        (["--freeze_vision_tower"], "freeze_vision_tower is False there and True here"),
        (["--warmup_steps", "0"], "warmup_steps is 0.1 there and 0.0 here"),
    ],
)
def test_other_settings_are_refused_by_their_names(
    base: Path, folder: Path, output: Path, flags: list[str], difference: str
) -> None:
    pairs = str(output.parent / "pairs.jsonl")
    for resume in (RESUME, ()):
        with pytest.raises(UserError) as caught:
            trainer_for(base, folder, pairs, output, *SAVING, *LENGTH, *flags, *resume)
        assert difference in str(caught.value)
        expected = "checkpoint-2: belongs to a run with" if resume else "has the result of another"
        assert expected in str(caught.value)
        assert "checkpoint-1" not in str(caught.value)


def test_other_data_models_and_pictures_are_refused(
    base: Path, folder: Path, output: Path, tmp_path: Path
) -> None:
    fresh = (*SAVING, *LENGTH, *RESUME)
    pairs = write(tmp_path / "other.jsonl", varied(7, form=FORM))
    with pytest.raises(
        UserError, match=r"data \(sha256\) is \w{12}\.\.\. there and \w{12}\.\.\. h"
    ):
        trainer_for(base, folder, pairs, output, *fresh)
    same = str(output.parent / "pairs.jsonl")
    other = Path(shutil.copytree(base, tmp_path / "other_model"))
    save_model(other, "qwen2_vl")
    with pytest.raises(UserError, match=r"model is \w{12}\.\.\. there and"):
        trainer_for(other, folder, same, output, *fresh)
    # Another path of the same rows, and of the same model, is no other run.
    moved = write(tmp_path / "moved.jsonl", varied(8, form=FORM))
    copied = Path(shutil.copytree(base, tmp_path / "copied_model"))
    trainer, _ = trainer_for(copied, folder, moved, output, *fresh, "--logging_steps", "2")
    assert trainer.args.resume_from_checkpoint == str(output / "checkpoint-2")


def test_another_number_of_processes_is_refused(base: Path, folder: Path, output: Path) -> None:
    for place in (output, output / "checkpoint-2"):
        content = json.loads((place / "run.json").read_text())
        content["record"]["processes"] = 8
        (place / "run.json").write_text(json.dumps(content))
    pairs = str(output.parent / "pairs.jsonl")
    for resume in (RESUME, ()):
        with pytest.raises(UserError, match="processes is 8 there and 1 here"):
            trainer_for(base, folder, pairs, output, *SAVING, *LENGTH, *resume)


def test_a_longer_run_goes_on_and_a_shorter_one_is_refused(
    base: Path, folder: Path, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = str(output.parent / "pairs.jsonl")
    with pytest.raises(UserError, match=r"is at step 2, and this run would end at step 1 \(max_st"):
        trainer_for(base, folder, pairs, output, *SAVING, *RESUME, "--max_steps", "1")
    longer = (*SAVING, "--max_steps", "3")
    with pytest.raises(UserError, match="max_steps is 2 there and 3 here"):
        trainer_for(base, folder, pairs, output, *longer)
    trainer_for(base, folder, pairs, output, *longer, *RESUME)
    assert "resumed at step 2 of 3 with another length (max_steps is 2" in capsys.readouterr().err


def test_a_killed_run_goes_on_and_the_same_run_may_begin_again(
    base: Path, folder: Path, output: Path
) -> None:
    pairs = str(output.parent / "pairs.jsonl")
    expected = load_file(output / "model.safetensors")
    # Killed while it saved: the last checkpoint is cut, an earlier one is whole.
    (output / "summary.json").unlink()
    optimizer = output / "checkpoint-2/optimizer.pt"
    os.truncate(optimizer, optimizer.stat().st_size // 2)
    again = (base, folder, pairs, output, *SAVING, *LENGTH)
    built = trainer_for(*again, *RESUME)
    assert built[1][1].resume_from_checkpoint == str(output / "checkpoint-1")
    run.train(*with_settings(built))
    assert (output / "summary.json").exists()
    for name, weight in load_file(output / "model.safetensors").items():
        assert equal(weight, expected[name])
    trainer_for(*again)


def stop_at(step: int) -> TrainerCallback:
    """Ctrl-C before the step that follows this one."""

    class Stops(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == step:
                raise KeyboardInterrupt

    return Stops()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            SAVING,
            "stopped behind step 1; the same command with --resume_from_checkpoint true goes "
            "on from step 1",
        ),
        (("--save_strategy", "no"), "stopped behind step 1; no checkpoint is kept"),
        ((*SAVING, "--save_only_model", "true"), "stopped behind step 1; no checkpoint is kept"),
    ],
)
def test_a_stopped_run_says_how_to_go_on(
    base: Path, folder: Path, pairs: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    flags: tuple[str, ...], message: str,
) -> None:  # fmt: skip
    built = trainer_for(base, folder, pairs, tmp_path / "out", *LENGTH, *flags)
    built[0].add_callback(stop_at(1))
    with pytest.raises(KeyboardInterrupt):
        run.train(*with_settings(built))
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("kept", ["model.safetensors", "checkpoint-2", "summary.json"])
def test_a_result_of_unknown_origin_is_not_replaced(
    base: Path, folder: Path, output: Path, kept: str
) -> None:
    for path in output.iterdir():
        if path.name != kept:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    pairs = str(output.parent / "pairs.jsonl")
    with pytest.raises(UserError, match=rf"another run \({kept}; it has no run.json"):
        trainer_for(base, folder, pairs, output, *SAVING, *LENGTH)


def test_a_result_is_removed_when_asked(base: Path, folder: Path, output: Path) -> None:
    for name in ("model-00003-of-00003.safetensors", "adapter_config.json", "notes.txt"):
        (output / name).write_text("of an earlier run")
    pairs = str(output.parent / "pairs.jsonl")
    flags = ("--max_steps", "1", "--seed", "5", "--overwrite_output_dir", "true")
    run.train(*with_settings(trainer_for(base, folder, pairs, output, *SAVING, *flags)))
    assert {path.name for path in output.glob("checkpoint-*")} == {"checkpoint-1"}
    assert not (output / "model-00003-of-00003.safetensors").exists()
    assert not (output / "adapter_config.json").exists()
    assert (output / "notes.txt").exists()
    assert json.loads((output / "run.json").read_text())["record"]["seed"] == 5


def test_a_checkpoint_of_another_folder_is_taken_by_name(
    base: Path, folder: Path, output: Path, tmp_path: Path
) -> None:
    pairs = str(output.parent / "pairs.jsonl")
    named = ("--resume_from_checkpoint", str(output / "checkpoint-1"))
    trainer_for(base, folder, pairs, tmp_path / "elsewhere", *SAVING, *LENGTH, *named)
    # What stands in the folder that is written to is still not replaced.
    (tmp_path / "full").mkdir()
    (tmp_path / "full/model.safetensors").write_text("of another run")
    with pytest.raises(UserError, match="has the result of another run"):
        trainer_for(base, folder, pairs, tmp_path / "full", *SAVING, *LENGTH, *named)


def test_a_checkpoint_of_unknown_origin_is_not_gone_on_with(
    base: Path, folder: Path, output: Path
) -> None:
    for record in output.rglob("run.json"):
        record.unlink()
    pairs = str(output.parent / "pairs.jsonl")
    with pytest.raises(UserError, match=r"checkpoint-2: has no run.json, so what it was trained"):
        trainer_for(base, folder, pairs, output, *SAVING, *LENGTH, *RESUME)
