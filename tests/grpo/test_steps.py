"""How many steps a run takes: by the trainer itself, and as it is told beforehand."""

from pathlib import Path

import pytest
from cot_reward.errors import UserError
from cot_reward.grpo import trl_settings
from cot_reward.grpo.steps import count_steps
from helpers.grpo import trainer_for

REQUIRED = "--data_path x --model_name_or_path x --use_cpu --bf16 false --report_to none "


@pytest.mark.parametrize(
    ("flags", "questions", "total", "left_out"),
    [
        ("--per_device_train_batch_size 32", 8, 2 * 3, 0),
        ("--per_device_train_batch_size 32", 11, 2 * 3, 3),
        ("--per_device_train_batch_size 8 --gradient_accumulation_steps 4", 8, 2 * 3, 0),
        ("--per_device_train_batch_size 8 --steps_per_generation 4", 8, 8 * 3, 0),
        ("--per_device_train_batch_size 32 --num_iterations 2", 8, 4 * 3, 0),
        ("--per_device_train_batch_size 32 --max_steps 5", 8, 5, 0),
    ],
)
def test_steps_are_counted(flags: str, questions: int, total: int, left_out: int) -> None:
    training = trl_settings.parse((REQUIRED + flags).split())[1]
    steps = count_steps(training, questions)
    assert (steps.total, steps.at_once, steps.left_out) == (total, 4, left_out)


def test_fewer_questions_than_a_batch_train_nothing_and_are_refused() -> None:
    training = trl_settings.parse((REQUIRED + "--per_device_train_batch_size 32").split())[1]
    with pytest.raises(UserError, match="3 questions do not fill one batch of 4"):
        count_steps(training, 3)


@pytest.mark.parametrize("flags", [(), ("--steps_per_generation", "2"), ("--num_iterations", "2")])
def test_the_trainers_own_batches_are_as_many(
    speaker: Path, comparisons: Path, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    given = (*flags, "--num_train_epochs", "1", "--per_device_train_batch_size", "16")
    trainer, _, training, _, train = trainer_for(speaker, comparisons, tmp_path / "out", *given)
    batches = len(trainer.get_train_dataloader())
    assert batches == count_steps(training, len(train.rows)).total
