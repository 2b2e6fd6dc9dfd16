"""A training through `scripts/GRPO_VL.py`: what it writes, and what stops it early."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.environments import REPO
from helpers.grpo import flags_for
from transformers import AutoModelForImageTextToText, AutoProcessor

BIN = Path(sys.executable).parent


def launch(*flags: str) -> subprocess.CompletedProcess[str]:
    command = (
        f"{BIN}/accelerate launch -q --config_file configs/demo/accelerate.yaml "
        "--num_cpu_threads_per_process 1 scripts/GRPO_VL.py"
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
    speaker: Path, comparisons: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    given = [
        "--orders",
        "both",
        "--max_steps",
        "2",
        "--eval_strategy",
        "steps",
        "--eval_steps",
        "2",
        "--beta",
        "0.01",
    ]
    held_out = ["--eval_data_path", f"{comparisons}/rows.jsonl", "--per_device_eval_batch_size=8"]
    done = launch(*flags_for(speaker, comparisons, out, *given, *held_out))
    assert done.returncode == 0, done.stderr
    assert "16 questions, 2 steps; 4 questions at once, 8 texts of each" in done.stdout
    summary = json.loads((out / "summary.json").read_text())
    assert summary["rows"] == {"questions": 16, "skipped": {}, "ties": 0, "repeated": 0}
    assert (summary["steps"], summary["texts"]) == (2, 64)
    assert {"rewards/judged/mean", "rewards/well_formed/mean", "frac_reward_zero_std", "kl",
            "eval_rewards/judged/mean"} <= summary["metrics"].keys()  # fmt: skip
    assert {path.stem for path in out.glob("curves/*.png")} == {"rewards", "texts"}
    card = (out / "README.md").read_text()
    assert "by group relative policy optimization (GRPO)" in card
    assert "| reward of the judge | " in card
    assert "- grpo\n" in card
    # The prompt stays beside the weights, so that the client asks with no other one.
    assert (out / "template.txt").read_text() == (comparisons / "template.txt").read_text()
    model = AutoModelForImageTextToText.from_pretrained(out)
    assert model.generation_config.eos_token_id
    read = {path: AutoProcessor.from_pretrained(path) for path in (speaker, out)}
    assert read[out].chat_template == read[speaker].chat_template
    assert read[out].tokenizer.get_vocab() == read[speaker].tokenizer.get_vocab()
    assert read[out].tokenizer.padding_side == read[speaker].tokenizer.padding_side


@pytest.mark.slow
def test_an_adapter_is_merged(speaker: Path, comparisons: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    lora = [
        "--max_steps",
        "1",
        "--use_peft",
        "true",
        "--merge_adapter",
        "true",
        "--learning_rate",
        "1e-2",
    ]
    done = launch(*flags_for(speaker, comparisons, out, *lora))
    assert done.returncode == 0, done.stderr
    assert (out / "adapter/adapter_model.safetensors").is_file()
    assert (out / "model.safetensors").is_file()
    assert not (out / "adapter_config.json").exists()
    AutoModelForImageTextToText.from_pretrained(out)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--temprature 1", "unknown flag '--temprature'. Did you mean '--temperature'?"),
        ("--data_path gone.jsonl", "gone.jsonl: no such file"),
    ],
)
def test_a_mistake_is_told_before_a_model_is_loaded(
    speaker: Path, comparisons: Path, tmp_path: Path, flags: str, message: str
) -> None:
    given = flags_for(speaker, comparisons, tmp_path / "out", *flags.split())
    done = subprocess.run(
        [sys.executable, "scripts/GRPO_VL.py", *given], cwd=REPO, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr.splitlines()) == (2, [f"error: {message}"])
    assert not (tmp_path / "out/run.json").exists()
