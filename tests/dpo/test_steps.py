"""The number of steps that is told before training, and the warning when they are few."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
from cot_reward.dpo import run, steps, trl_settings
from cot_reward.dpo.load import load_train_and_eval
from cot_reward.rows.few_pairs import FEW_PAIRS, few_pairs_warning
from helpers.dpo import row, trainer_for, write
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
    flags += ["--lr_scheduler_type", "cosine", "--lr_scheduler_kwargs", "{}"]
    trainer, parsed = trainer_for(base, folder, pairs, tmp_path / "out", *flags)
    run.train(trainer, *parsed)
    log = [entry["learning_rate"] for entry in trainer.state.log_history if "loss" in entry]
    rates = steps.learning_rates(parsed[1], 4)
    assert [0.01 * rate for rate in rates] == pytest.approx(log)
    assert log[0] == 0
    printed = capsys.readouterr()
    assert "8 pairs about 8 comparisons, 4 steps of 2 pairs" in printed.out.splitlines()
    assert (
        "warning: only 4 optimiser steps. The learning rate is 0 in 1 of them, and at 90% or more "
        "of its peak in 1 (warm-up begins at 0; --warmup_steps 0 trains from the first step). "
        "For more steps: a higher --max_steps (now 4)." in printed.err
    )


def test_few_pairs_are_told_of_before_a_model_is_loaded(
    tmp_path: Path, base: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two pairs are about one comparison, in both orders; the rows of others have no ids."""
    rows = [row(["0.png", "1.png"]), row(["1.png", "0.png"]), row(["2.png", "1.png"])]
    for without_id in rows:
        del without_id["id"]
    pairs = write(tmp_path / "pairs.jsonl", rows)
    flags = f"--data_path {pairs} --model_name_or_path {base} --image_folder {folder}"
    flags += f" --output_dir {tmp_path}/out --use_cpu --bf16 false --report_to none"
    parsed = trl_settings.parse([*flags.split(), "--num_train_epochs", "40"])
    assert load_train_and_eval(*parsed)[0].comparisons == 2
    printed = capsys.readouterr()
    assert printed.out == "3 pairs about 2 comparisons, 40 steps of 3 pairs\n"
    assert printed.err == few_pairs_warning(3, 40) + "\n"
    assert few_pairs_warning(3, 40).startswith("warning: 3 pairs, 40 steps: expect noise; on 83")
    assert few_pairs_warning(FEW_PAIRS, 40) == ""


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
