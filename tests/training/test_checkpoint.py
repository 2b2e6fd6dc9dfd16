"""Which checkpoint a run resumes from."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from cot_reward.errors import UserError
from cot_reward.training.checkpoint import (
    checkpoint_to_resume,
    read_record,
    step_of,
    write_checkpoint_record,
)


def save(folder: Path, step: int = 1) -> Path:
    """A checkpoint with weights, a process's part of the optimizer, and a state; not marked."""
    (folder / "global_step").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "global_step/optimizer.pt").write_bytes(b"moments")
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    return folder


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """A folder of two complete checkpoints, an incomplete one, and others of similar names."""
    (tmp_path / "run.json").write_text("{}")
    for step in (9, 10, 11):
        folder = save(tmp_path / f"checkpoint-{step}", step)
        if step != 11:
            write_checkpoint_record(folder, {"seed": step})
    for name in ("checkpoint-x", "checkpoint-"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-12").write_text("a file")
    return tmp_path


@pytest.mark.parametrize("flag", [None, "", "false", "False", "none", False])
def test_without_the_flag_there_is_none(output: Path, flag: str | bool | None) -> None:
    assert checkpoint_to_resume(flag, output) is None


@pytest.mark.parametrize("flag", ["true", "True", True])
def test_true_is_the_newest_complete_one_by_number(output: Path, flag: str | bool) -> None:
    found = checkpoint_to_resume(flag, output)
    assert found == str(output / "checkpoint-10")
    assert read_record(Path(found)) == {"seed": 10}
    assert step_of(Path(found)) == 10


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (lambda folder: (folder / "run.json").unlink(), "it has no run.json"),
        (lambda folder: (folder / "run.json").write_text('{"rec'), "it has no run.json"),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(b"weig"),
            "model.safetensors has 4 of 7 bytes",
        ),
        (
            lambda folder: (folder / "global_step/optimizer.pt").unlink(),
            "global_step/optimizer.pt is missing",
        ),
        (
            lambda folder: (folder / "trainer_state.json").write_text('{"global_step": x'),
            "trainer_state.json has 17 of 19 bytes",
        ),
        (
            lambda folder: (folder / "trainer_state.json").write_text('{"global_step":10;'),
            "trainer_state.json cannot be read",
        ),
    ],
)
def test_a_damaged_one_is_passed_over_and_named_when_asked_for(
    output: Path, damage: Callable[[Path], object], fault: str
) -> None:
    newest = output / "checkpoint-10"
    if "cannot be read" in fault:
        (newest / "trainer_state.json").write_text('{"global_step":10}')
        write_checkpoint_record(newest, {})
    damage(newest)
    assert checkpoint_to_resume("true", output) == str(output / "checkpoint-9")
    with pytest.raises(UserError) as caught:
        checkpoint_to_resume(str(newest), output)
    assert f"checkpoint-10: is not a complete checkpoint: {fault}" in str(caught.value)


def test_an_output_folder_without_a_complete_one_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no checkpoint in .*; leave the flag out"):
        checkpoint_to_resume("true", tmp_path)
    save(tmp_path / "checkpoint-3")
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(UserError, match=r"\(checkpoint-3 is not complete: it has no run.json"):
        checkpoint_to_resume("true", tmp_path)


def test_a_checkpoint_of_another_trainer_is_told_by_its_state(tmp_path: Path) -> None:
    """As LLaMA-Factory leaves it: no run.json, neither here nor in the output folder."""
    save(tmp_path / "checkpoint-3")
    (save(tmp_path / "checkpoint-4") / "trainer_state.json").write_text('{"global_st')
    found = checkpoint_to_resume("true", tmp_path)
    assert found == str(tmp_path / "checkpoint-3")
    assert read_record(Path(found)) == {}
