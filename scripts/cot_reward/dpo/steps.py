"""How many optimiser steps a run takes, and a word when they, or the pairs, are few."""

import math
import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler

from cot_reward.dpo.trl_settings import PairConfig
from cot_reward.rows.few_pairs import few_pairs_warning

# Below it, warm-up and the fall of the learning rate leave few steps that learn.
FEW_STEPS = 30
_NEAR_PEAK = 0.9


@dataclass(frozen=True)
class Steps:
    """`total` steps of at most `rows_per_step` of the `rows`, over all processes."""

    rows: int
    total: int
    rows_per_step: int

    def told(self, noun: str) -> str:
        steps = f"{self.total} step{'s' * (self.total != 1)}"
        return f"{steps} of {min(self.rows, self.rows_per_step)} {noun}"


def count_steps(training: PairConfig, rows: int) -> Steps:
    """The steps that the Trainer takes for this number of rows, from the first to the last."""
    batch = training.train_batch_size * training.world_size
    batches = rows // batch if training.dataloader_drop_last else math.ceil(rows / batch)
    an_epoch = max(1, math.ceil(batches / training.gradient_accumulation_steps))
    total = training.max_steps
    if total < 0:
        total = math.ceil(training.num_train_epochs * an_epoch)
    return Steps(rows, total, batch * training.gradient_accumulation_steps)


def learning_rates(training: PairConfig, total: int) -> list[float]:
    """The learning rate of each step as a share of the peak; empty if the schedule is not fixed."""
    plugin: Any = training.deepspeed_plugin
    if plugin is not None and "scheduler" in plugin.deepspeed_config:
        return []
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=training.learning_rate)
    scheduler: Any = get_scheduler(
        training.lr_scheduler_type,
        optimizer,
        training.get_warmup_steps(total),
        total,
        scheduler_specific_kwargs=dict(training.lr_scheduler_kwargs or {}),
    )
    if not isinstance(scheduler, LambdaLR):
        return []
    return [float(scheduler.lr_lambdas[0](step)) for step in range(total)]


def few_steps_warning(training: PairConfig, steps: Steps) -> str:
    """What few steps mean and what to do; "" when there are enough."""
    if steps.total >= FEW_STEPS:
        return ""
    rates = learning_rates(training, steps.total)
    return " ".join(
        part
        for part in (
            f"warning: only {steps.total} optimiser step{'s' * (steps.total != 1)}.",
            _what_rates_mean(training, rates),
            _how_to_take_more(training),
        )
        if part
    )


def _what_rates_mean(training: PairConfig, rates: list[float]) -> str:
    if not rates:
        return ""
    idle, near = rates.count(0.0), sum(rate >= _NEAR_PEAK for rate in rates)
    text = f"The learning rate is at 90% or more of its peak in {near} of them"
    if idle:
        text = f"The learning rate is 0 in {idle} of them, and at 90% or more of its peak in {near}"
    if idle == len(rates):
        text = "The learning rate is 0 in every step, so the model will not change"
    if not rates[0] and training.get_warmup_steps(len(rates)):
        text += " (warm-up begins at 0; --warmup_steps 0 trains from the first step)"
    return text + "."


def _how_to_take_more(training: PairConfig) -> str:
    if training.max_steps > 0:
        return f"For more steps: a higher --max_steps (now {training.max_steps})."
    ways = [
        f"a lower --{name} (now {getattr(training, name)})"
        for name in ("gradient_accumulation_steps", "per_device_train_batch_size")
        if getattr(training, name) > 1
    ]
    ways.append(f"a higher --num_train_epochs (now {training.num_train_epochs:g})")
    return f"For more steps: {', '.join(ways)}, or more pairs."


def announce(training: PairConfig, pairs: int, comparisons: int, groups: int | None = None) -> None:
    """Print the numbers of pairs, comparisons and steps, and a warning when pairs or steps are few.

    `groups`: so many rows hold the pairs; None: a pair is a row. It needs no model, so that nothing
    is spent yet.
    """
    steps = count_steps(training, pairs if groups is None else groups)
    found = f"{pairs} pairs about {comparisons} comparison{'s' * (comparisons != 1)}"
    if groups is None:
        print(f"{found}, {steps.told('pairs')}")
    else:
        print(f"{found} in {groups} groups, {steps.told('groups')}")
    for warning in (few_pairs_warning(pairs, steps.total), few_steps_warning(training, steps)):
        if warning:
            print(warning, file=sys.stderr)
