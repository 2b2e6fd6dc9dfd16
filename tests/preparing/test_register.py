"""scripts/prepare_data.py register: what LLaMA-Factory then finds."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cot_reward import settings
from cot_reward.errors import UserError
from cot_reward.preparing.register import register
from cot_reward.preparing.settings import RegisterSettings
from helpers.environments import REPO
from helpers.rows import judged_row, write_lines
from helpers.texts import cot

PAIR = {"problem": "<image><image>x", "chosen": "a", "rejected": "b", "images": ["a", "b"]}


def run(folder: Path, row: dict[str, Any], *flags: object) -> dict[str, Any]:
    """The register after the row's file was named `mine`."""
    file = write_lines(folder / "rows.jsonl", [row])
    argv = [file, "--name", "mine", "--media-root", folder / "dataset", *flags]
    assert register(settings.parse(RegisterSettings, "", argv=list(map(str, argv)))) == 0
    return json.loads((folder / "dataset/dataset_info.json").read_text())


def test_files_of_the_samples_are_registered_as_the_project_has_them(tmp_path: Path) -> None:
    own = json.loads((REPO / "dataset/dataset_info.json").read_text())
    for name, sample in (("sft.json", "sample_sft"), ("dpo.jsonl", "sample_dpo")):
        argv = [REPO / "dataset/sample" / name, "--name", sample, "--media-root", tmp_path]
        done = subprocess.run(
            [sys.executable, "scripts/prepare_data.py", "register", *map(str, argv)], cwd=REPO,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        known = json.loads((tmp_path / "dataset_info.json").read_text())
        assert known[sample] | {"file_name": ""} == own[sample] | {"file_name": ""}
        assert (tmp_path / known[sample]["file_name"]).resolve() == REPO / "dataset/sample" / name


def test_other_entries_stay_and_no_other_set_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset/dataset_info.json").write_text('{"other": {"file_name": "x"}}')
    known = run(tmp_path, judged_row(cot()))
    assert known["other"] == {"file_name": "x"}
    assert known["mine"]["file_name"] == "../rows.jsonl"
    assert run(tmp_path, judged_row(cot())) == known
    with pytest.raises(UserError, match="has another data set 'mine'"):
        run(tmp_path, PAIR)
    assert run(tmp_path, PAIR, "--replace")["mine"]["ranking"] is True


def test_rows_that_cannot_be_trained_on_are_refused(tmp_path: Path) -> None:
    comparison = {"text": "a", "candidates": ["a.png", "b.png"], "label": 1}
    with pytest.raises(UserError, match=r"comparisons .* are for the client"):
        run(tmp_path, comparison)
    with pytest.raises(UserError, match="must be letters"):
        run(tmp_path, PAIR, "--name", "../x")
