"""A training through `scripts/DPO_VL.py`: what it writes, and what stops it early."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.dpo import row, write
from helpers.environments import REPO
from helpers.models import save_untrained_base
from transformers import AutoModelForImageTextToText, AutoProcessor

BIN = Path(sys.executable).parent


def launch(*flags: str) -> subprocess.CompletedProcess[str]:
    command = (
        f"{BIN}/accelerate launch -q --config_file configs/demo/accelerate.yaml "
        "--num_cpu_threads_per_process 1 scripts/DPO_VL.py"
    )
    return subprocess.run(
        [*command.split(), *flags],
        cwd=REPO,
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "CI": "1"},
    )


@pytest.mark.slow
def test_training_writes_a_model_that_loads(
    base: Path, folder: Path, pairs: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    flags = (
        f"--config configs/demo/dpo.yaml --model_name_or_path {base} --data_path {pairs} "
        f"--image_folder {folder} --output_dir {out} --per_device_train_batch_size 2 "
        "--save_strategy steps --save_steps 1 "
        f"--eval_data_path {pairs} --eval_strategy steps --eval_steps 2"
    ).split()
    done = launch(*flags, "--max_steps", "2")
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    summary = json.loads((out / "summary.json").read_text())
    assert summary["rows"] == {"in": 8, "out": 8, "skipped": {}}
    assert summary["steps"] == 2
    assert summary["settings"]["beta"] == 0.3
    assert summary["settings"]["image_folder"] == str(folder)
    assert {"rewards/margins", "eval_rewards/accuracies"} <= summary["metrics"].keys()
    assert list(out.glob("runs/*/events.out.tfevents.*"))
    assert {path.stem for path in out.glob("curves/*.png")} == {
        "loss", "rewards", "reward_accuracy", "reward_accuracy_by_group", "answer_and_reasoning",
        "answer_by_position",
    }  # fmt: skip
    assert {"loss/sigmoid", "loss/sft", "eval_loss/sft"} <= summary["metrics"].keys()
    assert "8 pairs about 8 comparisons, 2 steps of 2 pairs" in done.stdout
    assert "warning: 8 pairs, 2 steps: expect noise;" in done.stderr
    assert "warning: only 2 optimiser steps." in done.stderr
    card = (out / "README.md").read_text()
    assert f"- Data: `{pairs}`, 8 pairs, sha256 `" in card
    assert "| reward accuracy, held out | " in card
    assert json.loads((out / "trainer_state.json").read_text())["global_step"] == 2

    before = AutoModelForImageTextToText.from_pretrained(base).state_dict()
    after = AutoModelForImageTextToText.from_pretrained(out).state_dict()
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert (out / "generation_config.json").is_file()
    read = {path: AutoProcessor.from_pretrained(path) for path in (base, out)}
    assert read[out].chat_template == read[base].chat_template
    assert read[out].tokenizer.get_vocab() == read[base].tokenizer.get_vocab()
    assert json.loads((out / "config.json").read_text()).get("use_cache", True)

    done = launch(*flags, "--max_steps", "3", "--resume_from_checkpoint", "true")
    assert done.returncode == 0, done.stderr
    history = json.loads((out / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in history if "loss" in entry] == [1, 2, 3]


@pytest.mark.slow
def test_a_missing_picture_is_found_before_a_model_loads(folder: Path, tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", [row(["0.png", "1.png"]), row(["0.png", "gone.png"])])
    flags = (
        f"--config configs/demo/dpo.yaml --data_path {rows} --image_folder {folder} "
        f"--model_name_or_path {tmp_path}/no_model --output_dir {tmp_path}/out"
    )
    done = subprocess.run(
        [sys.executable, "scripts/DPO_VL.py", *flags.split()],
        cwd=REPO,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"error: {rows}: 1 of 2 rows cannot be used:",
        f"  line 2: gone.png: no such file below the media root {folder}; put it there, or name "
        "another media root (--media-root; of stage 3: --image_folder)",
        "mend them, or leave them out with --skip_bad_rows",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen3_vl", "qwen3_5"])
def test_a_model_of_another_family_trains_and_resumes(
    folder: Path, pairs: str, tmp_path: Path, family: str
) -> None:
    base, out = save_untrained_base(tmp_path / "base", family=family), tmp_path / "out"
    flags = (
        f"--config configs/demo/dpo.yaml --model_name_or_path {base} --data_path {pairs} "
        f"--image_folder {folder} --output_dir {out} --per_device_train_batch_size 2 "
        "--save_strategy steps --save_steps 1"
    ).split()
    done = launch(*flags, "--max_steps", "1")
    assert done.returncode == 0, done.stderr
    assert "stock TRL's forward" not in done.stdout + done.stderr
    done = launch(*flags, "--max_steps", "2", "--resume_from_checkpoint", "true")
    assert done.returncode == 0, done.stderr
    history = json.loads((out / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in history if "loss" in entry] == [1, 2]
    assert json.loads((out / "config.json").read_text())["model_type"] == family
    before = AutoModelForImageTextToText.from_pretrained(base).state_dict()
    after = AutoModelForImageTextToText.from_pretrained(out).state_dict()
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)
