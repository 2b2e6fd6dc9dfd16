"""Several processes: results of one for all, equal shares of work, and unsharded models."""

import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from transformers.integrations import deepspeed as hf_deepspeed

from cot_reward.errors import UserError
from cot_reward.training.machines import check_alike, check_faults

T = TypeVar("T")


def broadcast_from_main(work: Callable[[], T]) -> T:
    """Run `work` in the main process and return its result in every process.

    When it raises UserError, one process of each machine raises the error and the other processes
    exit with code 2, so that the message appears once there.
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
        raise_together(box[0])
    result: T = box[0]
    return result


def on_every_machine(work: Callable[[], T]) -> dict[str, T]:
    """Run `work` in one process of each machine: machine -> its result, in every process.

    Where it raises UserError on some of them, every process ends, with an error that names these
    machines: none is left waiting for another one.
    """
    state = PartialState()
    if state.num_processes == 1:
        return {"this machine": work()}
    own: list[tuple[str, Any, str]] = []
    if state.is_local_main_process:
        try:
            own = [(socket.gethostname(), work(), "")]
        except UserError as error:
            own = [(socket.gethostname(), None, str(error))]
    found = gather_object(own)
    # Containers may all have one host name.
    names = [f"node {number} ({host})" for number, (host, _, _) in enumerate(found)]
    try:
        check_faults({name: fault for name, (_, _, fault) in zip(names, found, strict=True)})
    except UserError as error:
        raise_together(error)
    return {name: result for name, (_, result, _) in zip(names, found, strict=True)}


def same_on_every_machine(what: str, work: Callable[[], T]) -> T:
    """The result of `work`, run as by `on_every_machine`. Raises UserError where it differs.

    `what` names it in the error. Of dicts each key is compared.
    """
    found = on_every_machine(work)
    facts = {
        name: result if isinstance(result, dict) else {what: result}
        for name, result in found.items()
    }
    try:
        check_alike(facts)
    except UserError as error:
        raise_together(error)
    return next(iter(found.values()))


def raise_together(error: UserError) -> NoReturn:
    """End every process with code 2; one on each machine raises the error, whose log shows it."""
    raise error if PartialState().is_local_main_process else SystemExit(2)


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
