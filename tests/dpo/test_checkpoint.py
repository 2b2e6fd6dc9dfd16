"""Which checkpoint a run resumes from."""

import json
from pathlib import Path

import pytest
from cot_reward.dpo.checkpoint import checkpoint_to_resume
from cot_reward.errors import UserError


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """A folder of two complete checkpoints, an incomplete one, and others of similar names."""
    for name in ("checkpoint-9", "checkpoint-10", "checkpoint-11", "checkpoint-x", "checkpoint-"):
        (tmp_path / name).mkdir()
        if name != "checkpoint-11":
            (tmp_path / name / "trainer_state.json").write_text(json.dumps({"global_step": 1}))
    (tmp_path / "checkpoint-12").write_text("a file")
    return tmp_path


@pytest.mark.parametrize("flag", [None, "", "false", "False", "none", False])
def test_without_the_flag_there_is_none(output: Path, flag: str | bool | None) -> None:
    assert checkpoint_to_resume(flag, output) is None


@pytest.mark.parametrize("flag", ["true", "True", True])
def test_true_is_the_newest_complete_one_by_number(output: Path, flag: str | bool) -> None:
    assert checkpoint_to_resume(flag, output) == str(output / "checkpoint-10")


def test_a_named_one_must_be_complete(output: Path) -> None:
    complete = str(output / "checkpoint-9")
    assert checkpoint_to_resume(complete, output) == complete
    for state in (None, "", '{"global_st', '{"epoch": 1}'):
        if state is not None:
            (output / "checkpoint-11/trainer_state.json").write_text(state)
        with pytest.raises(UserError, match="checkpoint-11: is not a complete checkpoint"):
            checkpoint_to_resume(str(output / "checkpoint-11"), output)


def test_an_output_folder_without_a_complete_one_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-3").mkdir()
    with pytest.raises(UserError, match=r"there is no checkpoint in .*; leave the flag out"):
        checkpoint_to_resume("true", tmp_path)
