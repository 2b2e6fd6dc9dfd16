"""The number of steps that is told before training, and the warning when they are few."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
from cot_reward.dpo import run, steps, trl_settings
from helpers.dpo import trainer_for
from helpers.environments import REPO
from transformers import TrainerState


def training(tmp_path: Path, *flags: str) -> Any:
    common = (
        f"--data_path x --model_name_or_path x --output_dir {tmp_path} --use_cpu --report_to none"
    )
    return trl_settings.parse([*common.split(), "--bf16", "false", *flags])[1]


@pytest.mark.parametrize(
    ("flags", "total"),
    [
        ("--num_train_epochs 3 --gradient_accumulation_steps 4", 6),  # 4 batches and 2, three times
        ("--num_train_epochs 3 --gradient_accumulation_steps 4 --dataloader_drop_last true", 6),
        ("--num_train_epochs 1.5", 9),
        ("--max_steps 7", 7),
    ],
)
def test_the_told_steps_are_those_of_the_trainer(
    tmp_path: Path, base: Path, folder: Path, pairs: str, flags: str, total: int
) -> None:
    arguments = training(tmp_path, "--per_device_train_batch_size", "2", *flags.split())
    assert steps.count_steps(arguments, 11).total == total
    common = ("--max_steps", "-1", "--dataloader_drop_last", "false")
    trainer, parsed = trainer_for(base, folder, pairs, tmp_path / "out", *common, *flags.split())
    theirs = trainer.set_initial_training_values(parsed[1], trainer.get_train_dataloader())
    assert steps.count_steps(parsed[1], 8).total == theirs[-1]


def test_the_told_learning_rates_are_those_of_the_trainer(
    tmp_path: Path, base: Path, folder: Path, pairs: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Warm-up begins at 0: the first step changes nothing."""
    flags = ["--max_steps", "4", "--warmup_steps", "1", "--learning_rate", "0.01"]
    trainer, parsed = trainer_for(base, folder, pairs, tmp_path / "out", *flags)
    run.train(trainer, *parsed)
    log = [entry["learning_rate"] for entry in trainer.state.log_history if "loss" in entry]
    rates = steps.learning_rates(parsed[1], 4)
    assert [0.01 * rate for rate in rates] == pytest.approx(log)
    assert log[0] == 0
    printed = capsys.readouterr()
    assert "8 pairs, 4 steps of 2 pairs" in printed.out.splitlines()
    assert (
        "warning: only 4 optimiser steps. The learning rate is 0 in 1 of them, and at 90% or more "
        "of its peak in 1 (warm-up begins at 0; --warmup_steps 0 trains from the first step). "
        "For more steps: a higher --max_steps (now 4)." in printed.err
    )


def test_the_warning_tells_only_what_is_so(tmp_path: Path) -> None:
    def warning(pairs: int, *flags: str) -> str:
        arguments = training(tmp_path, "--per_device_train_batch_size", "1", *flags)
        return steps.few_steps_warning(arguments, steps.count_steps(arguments, pairs))

    assert warning(10, "--gradient_accumulation_steps", "1") == ""  # 30 steps
    few = warning(32, "--gradient_accumulation_steps", "4", "--lr_scheduler_type", "constant")
    assert few == (
        "warning: only 24 optimiser steps. The learning rate is at 90% or more of its peak in 24 "
        "of them. For more steps: a lower --gradient_accumulation_steps (now 4), a "
        "higher --num_train_epochs (now 3), or more pairs."
    )
    one = warning(9, "--max_steps", "1", "--warmup_steps", "0.1")
    assert "The learning rate is 0 in every step, so the model will not change (warm-up" in one
    evaluates = ("--eval_strategy", "epoch", "--eval_data_path", "x")
    plateau = warning(9, "--lr_scheduler_type", "reduce_lr_on_plateau", *evaluates)
    assert plateau.startswith("warning: only 27 optimiser steps.")
    assert "learning rate" not in plateau


@pytest.mark.parametrize("name", ["dpo.yaml", "dpo_lora.yaml", "small_gpu/dpo.yaml"])
@pytest.mark.parametrize(("total", "saved"), [(24, [5, 10, 15, 20]), (200, [40, 80, 120, 160])])
def test_the_shipped_settings_fit_short_and_long_runs(
    tmp_path: Path, name: str, total: int, saved: list[int]
) -> None:
    """Every step learns, and a checkpoint is saved and evaluated several times before the end."""
    text = (REPO / "configs" / name).read_text()
    if name == "dpo.yaml":
        # The lines on evaluation, which the file shows in its last comment.
        text = re.sub(r"^#   (?=\w+: )", "", text, flags=re.MULTILINE)
        assert "\neval_steps: " in text
    (tmp_path / "c.yaml").write_text(text)
    arguments = training(tmp_path, "--config", str(tmp_path / "c.yaml"))
    rates = steps.learning_rates(arguments, total)
    assert min(rates) > 0
    assert rates.index(1.0) == math.ceil(0.1 * total) - 1
    state = TrainerState()
    state.compute_steps(arguments, total)
    assert list(range(state.save_steps, total, state.save_steps)) == saved
    if name == "dpo.yaml":
        assert arguments.load_best_model_at_end
        assert state.eval_steps == state.save_steps
