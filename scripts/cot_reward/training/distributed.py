"""Several processes: results of one for all, equal shares of work, and unsharded models."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers.integrations import deepspeed as hf_deepspeed

from cot_reward.errors import UserError

T = TypeVar("T")


def broadcast_from_main(work: Callable[[], T]) -> T:
    """Run `work` in the main process and return its result in every process.

    When it raises UserError, the main process raises the error and the other processes exit with
    code 2, so that the message appears once.
    """
    state = PartialState()
    box: list[Any] = [None]
    if state.is_main_process:
        try:
            box = [work()]
        except UserError as error:
            box = [error]
    broadcast_object_list(box)
    if isinstance(box[0], UserError):
        raise box[0] if state.is_main_process else SystemExit(2)
    result: T = box[0]
    return result


def print_once(message: str) -> None:
    """Print to stderr from the main process only."""
    if PartialState().is_main_process:
        print(message, file=sys.stderr)


def split_evenly(indices: list[int], processes: int) -> list[list[int]]:
    """The indices of each process, equally many; some repeat when they do not divide evenly.

    All processes of a sharded model must run the same number of batches.
    """
    repeats = [indices[n % len(indices)] for n in range(-len(indices) % processes)]
    filled = indices + repeats
    return [filled[rank::processes] for rank in range(processes)]


@contextmanager
def unsharded_models() -> Iterator[None]:
    """Models created inside are complete in every process, also under DeepSpeed ZeRO-3."""
    kept = hf_deepspeed._hf_deepspeed_config_weak_ref
    hf_deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        hf_deepspeed._hf_deepspeed_config_weak_ref = kept
