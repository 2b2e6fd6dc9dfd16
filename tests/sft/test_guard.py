"""Which output folders a training of LLaMA-Factory may start in."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from cot_reward.errors import UserError
from cot_reward.sft.guard import RECORD, admit
from helpers.environments import REPO
from helpers.models import save_untrained_base
from helpers.pictures import picture
from safetensors.torch import load_file

SFT = REPO / ".envs/sft/bin"


class Training:
    """A configuration with data and model on disk, and its output folder."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.out, self.rows, self.model = folder / "out", folder / "rows.json", folder / "model"
        self.rows.write_text("[1]")
        self.model.mkdir()
        (self.model / "config.json").write_text("{}")
        self.config = {
            "output_dir": str(self.out), "model_name_or_path": str(self.model),
            "finetuning_type": "lora", "learning_rate": 1e-5, "logging_steps": 1, **settings,
        }  # fmt: skip

    def admit(self, **changes: Any) -> str:
        return admit(self.config | changes, [self.rows])

    def stop_at(self, step: int) -> None:
        (self.out / f"checkpoint-{step}").mkdir(parents=True)

    def finish(self) -> None:
        self.out.mkdir(exist_ok=True)
        (self.out / "adapter_model.safetensors").write_text("weights")


def test_a_new_training_starts_and_a_stopped_one_goes_on(tmp_path: Path) -> None:
    training = Training(tmp_path)
    assert training.admit() == "a new training"
    # Stopped before its first checkpoint.
    assert training.admit(learning_rate=2e-5) == "a new training"
    assert training.admit() == "a new training"
    training.stop_at(8)
    assert training.admit() == "goes on at checkpoint-8"
    assert training.admit(logging_steps=5, save_steps=3) == "goes on at checkpoint-8"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"learning_rate": 2e-5}, "learning_rate: 1e-05 there, 2e-05 now"),
        ({"seed": 3}, "seed: None there, 3 now"),
        ({"model_name_or_path": "Qwen/Qwen2.5-VL-7B-Instruct"}, "model_name_or_path: "),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_other_settings_are_refused(
    tmp_path: Path, change: dict[str, Any], words: str, finished: bool
) -> None:
    training = Training(tmp_path)
    training.admit()
    training.stop_at(8)
    if finished:
        training.finish()
    with pytest.raises(UserError, match="training from other inputs") as error:
        training.admit(**change)
    assert words in str(error.value)
    assert f"mv {training.out} {training.out}.old" in str(error.value)


def test_other_rows_or_weights_are_refused(tmp_path: Path) -> None:
    training = Training(tmp_path)
    training.admit()
    training.stop_at(8)
    training.rows.write_text("[2]")
    with pytest.raises(UserError, match=r"rows.json has changed"):
        training.admit()
    training.rows.write_text("[1]")
    (training.model / "model.safetensors").write_text("other")
    with pytest.raises(UserError, match="model_name_or_path"):
        training.admit()


def test_a_finished_training_is_not_started_again(tmp_path: Path) -> None:
    training = Training(tmp_path)
    training.admit()
    training.finish()
    with pytest.raises(UserError, match="trained from these very inputs already"):
        training.admit()


def test_what_cannot_be_continued_is_refused(tmp_path: Path) -> None:
    training = Training(tmp_path, finetuning_type="full")
    training.admit()
    training.stop_at(8)
    with pytest.raises(UserError, match="would end with the weights of the start"):
        training.admit()


@pytest.mark.parametrize("record", [None, "{", "[1]"])
def test_a_folder_of_unknown_origin_is_refused(tmp_path: Path, record: str | None) -> None:
    training = Training(tmp_path)
    training.finish()
    if record is not None:
        (training.out / RECORD).write_text(record)
    with pytest.raises(UserError, match="move it away"):
        training.admit()


@pytest.mark.slow
def test_what_llama_factory_itself_does_in_a_finished_folder(tmp_path: Path) -> None:
    """Why there is a guard: it trains nothing, or loses the weights, with exit code 0."""
    model = save_untrained_base(tmp_path / "model")
    picture(tmp_path / "a.png", size=56)
    row = {
        "conversations": [
            {"from": "human", "value": "<image>Which?"}, {"from": "gpt", "value": "Image 1"},
        ],
        "images": ["a.png"],
    }  # fmt: skip
    (tmp_path / "rows.json").write_text(json.dumps([row] * 8))
    columns = {"messages": "conversations", "images": "images"}
    info = {"rows": {"file_name": "rows.json", "formatting": "sharegpt", "columns": columns}}
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))
    config = yaml.safe_load((REPO / "configs/demo/qwen_cold_start.yaml").read_text()) | {
        "model_name_or_path": str(model), "dataset": "rows", "dataset_dir": str(tmp_path),
        "media_dir": str(tmp_path), "output_dir": str(tmp_path / "out"), "num_train_epochs": 1,
        "overwrite_output_dir": False, "save_strategy": "epoch",
        "per_device_train_batch_size": 4,
    }  # fmt: skip
    path = tmp_path / "sft.yaml"
    path.write_text(yaml.safe_dump(config))

    def check() -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "scripts/check_sft.py", path]
        return subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)

    def train() -> dict[str, Any]:
        subprocess.run(
            [SFT / "llamafactory-cli", "train", path], cwd=REPO, check=True, capture_output=True,
            env=os.environ | {"PATH": f"{SFT}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        return load_file(tmp_path / "out/model.safetensors")

    started = check()
    assert "a new training; 8 rows, 4 a step, 1 epochs: 2 steps" in started.stdout, started.stderr
    trained = train()
    base = load_file(model / "model.safetensors")
    assert any((trained[name] != base[name]).any() for name in base)
    refused = check()
    assert refused.returncode == 2
    assert "trained from these very inputs already" in refused.stderr
    # Without the guard: the trained weights are gone.
    again = train()
    assert all((again[name] == base[name]).all() for name in base)
    shutil.rmtree(tmp_path / "out")
    assert check().returncode == 0
