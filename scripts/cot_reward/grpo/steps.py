"""How many optimiser steps a run of GRPO takes, and a word when they are few."""

import math
import sys
from dataclasses import dataclass
from typing import Any

from cot_reward.errors import UserError

# Below it, little is learnt, and what is learnt is mostly noise.
FEW_STEPS = 30


@dataclass(frozen=True)
class Steps:
    """`total` steps; texts are sampled for `at_once` questions, `texts` for each.

    `left_out` questions are not asked in an epoch, since the last ones do not fill a batch.
    """

    questions: int
    total: int
    at_once: int
    texts: int
    left_out: int

    def __str__(self) -> str:
        rest = f"; an epoch leaves {self.left_out} out, others each time" if self.left_out else ""
        return (
            f"{self.questions} questions, {self.total} steps; {self.at_once} questions at once, "
            f"{self.texts} texts of each{rest}"
        )


def count_steps(training: Any, questions: int) -> Steps:
    """The steps that the Trainer takes. Raises UserError when not even one batch is full."""
    at_once = training.generation_batch_size // training.num_generations
    batches = questions // at_once
    if not batches:
        raise UserError(
            f"{questions} questions do not fill one batch of {at_once} (generation_batch_size "
            f"{training.generation_batch_size} / num_generations {training.num_generations}), so "
            "that nothing would be trained: more data, or a lower --per_device_train_batch_size or "
            "--gradient_accumulation_steps"
        )
    micro_steps = batches * training.num_iterations * training.steps_per_generation
    an_epoch = max(1, math.ceil(micro_steps / training.gradient_accumulation_steps))
    total = training.max_steps
    if total < 0:
        total = math.ceil(training.num_train_epochs * an_epoch)
    return Steps(questions, total, at_once, training.num_generations, questions % at_once)


def announce(training: Any, questions: int) -> None:
    """Print the number of steps, and a warning when they are few."""
    steps = count_steps(training, questions)
    print(steps)
    if steps.total < FEW_STEPS:
        print(
            f"warning: only {steps.total} optimiser steps: a higher --num_train_epochs or "
            "--max_steps, or a smaller batch, gives more",
            file=sys.stderr,
        )
