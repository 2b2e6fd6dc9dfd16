"""The workers of a run as Ray actors, and the loop that hands the shares out to them."""

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cot_reward.distributed.plan import Growth
from cot_reward.distributed.queue import Queue
from cot_reward.distributed.settings import RaySettings
from cot_reward.distributed.worker import Attempt, Work, Worker
from cot_reward.errors import UserError

# How often the bar is brought up to date.
LOOK_SECONDS = 2.0
END_SECONDS = 30.0
PATIENCE_SECONDS = 60.0
# Rows and responses do not pass through Ray.
OBJECT_STORE_BYTES = 80 * 2**20


def connect(settings: RaySettings) -> None:
    """Join the cluster as a driver. Raises UserError."""
    # Before Ray is imported: nothing is sent to its makers.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray

    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if settings.cluster == "local":
        options |= {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    try:
        ray.init(settings.cluster, **options)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        raise UserError(
            f"--cluster {settings.cluster}: no Ray cluster that can be joined ({error}); start one "
            "(.envs/ray/bin/ray start --head), or use --cluster local"
        ) from None


def count_workers(settings: RaySettings, processes: int) -> int:
    """How many workers ask at the same time. Raises UserError when no machine has room for one."""
    import ray

    gpus = settings.gpus_per_server or 0
    room = [
        int(node["Resources"].get("GPU", 0)) // gpus if gpus else 1
        for node in ray.nodes()
        if node["Alive"] and node["Resources"].get("CPU", 0) >= processes
    ]
    if not any(room):
        wanted = f"{gpus} GPUs" if gpus else f"{processes} CPUs"
        raise UserError(f"no machine of the Ray cluster has {wanted} for a worker")
    return settings.workers or sum(room)


@dataclass(eq=False)
class _Seat:
    """The place of a worker, which is replaced when it dies. `share` None: it is starting."""

    number: int
    actor: Any
    host: str = ""
    share: int | None = None
    lines_before: int = 0


class Pool:
    """Asks all shares of a queue. `say` gets lines for the user, `look` is called now and then."""

    def __init__(
        self, queue: Queue, growth: Growth, work: Work, cpus: int, api_key: str,
        say: Callable[[str], None], look: Callable[[], None],
    ) -> None:  # fmt: skip
        import ray

        self._queue, self._growth, self._work, self._api_key = queue, growth, work, api_key
        self._say, self._look = say, look
        self._actors = ray.remote(Worker).options(
            num_cpus=cpus, num_gpus=work.gpus, scheduling_strategy="SPREAD"
        )
        # What a seat does now, and seats that have nothing to do.
        self._calls: dict[Any, _Seat] = {}
        self._idle: list[_Seat] = []
        self.unreadable = ""
        self._started = 0
        self._over = False
        # When the user is told that no worker has started; None: one has.
        self._patience: float | None = time.monotonic() + PATIENCE_SECONDS
        for number in queue.workers:
            self._seat(number)

    def _seat(self, number: int) -> None:
        self._started += 1
        seat = _Seat(number, self._actors.remote())
        self._calls[seat.actor.start.remote(self._work, str(self._started))] = seat

    def ask(self) -> None:
        """Ask all shares, until `unreadable` says why the texts are of no use."""
        while self._queue.open and self._queue.workers and not self.unreadable:
            for seat in list(self._idle):
                share = self._queue.take(seat.number)
                if share is not None:
                    self._idle.remove(seat)
                    seat.share, seat.lines_before = share, self._growth.lines(share)
                    self._calls[seat.actor.ask.remote(share, self._api_key)] = seat
            self._wait()

    def _wait(self) -> None:
        import ray

        ready, _ = ray.wait(list(self._calls), timeout=LOOK_SECONDS)
        for call in ready:
            seat = self._calls.pop(call)
            try:
                ended = ray.get(call)
            except ray.exceptions.RayError as error:
                ended = error
            if seat.share is None:
                self._started_or_not(seat, ended)
            else:
                self._asked(seat, seat.share, ended)
        for seat in self._calls.values():
            if seat.share is not None:
                self._growth.lines(seat.share)
        if self._patience and time.monotonic() > self._patience:
            self._patience = None
            self._say("no worker has started yet: servers load their model, or the cluster is full")
        self._look()

    def _started_or_not(self, seat: _Seat, ended: Any) -> None:
        if isinstance(ended, str):
            seat.host, self._patience = ended, None
            self._idle.append(seat)
            return
        self._say(f"worker {seat.number}: did not start: {_why(ended)}")
        self._queue.worker_failed(seat.number)
        self._replace(seat)

    def _asked(self, seat: _Seat, share: int, ended: Any) -> None:
        lines = self._growth.lines(share)
        if isinstance(ended, Attempt) and ended.finished:
            self._queue.finished(share, seat.number)
            self._idle.append(seat)
            return
        if isinstance(ended, Attempt) and ended.code == 3:
            # So would all others.
            self.unreadable = self.unreadable or f"share {share}: {ended.said}"
        stopped = isinstance(ended, Attempt) and ended.code == 130
        why = (
            ended.said
            if isinstance(ended, Attempt)
            else f"its worker on {seat.host} died: {_why(ended)}"
        )
        if not (stopped and self._over):
            self._say(f"share {share}: stopped after {lines} lines: {why}")
        self._queue.failed(share, seat.number, lines > seat.lines_before, why)
        alive = isinstance(ended, Attempt) and ended.code is not None
        if alive and seat.number in self._queue.workers:
            self._idle.append(seat)
        else:
            self._replace(seat)

    def _replace(self, seat: _Seat) -> None:
        """A new actor on the seat, wherever there is room, unless the worker was given up."""
        import ray

        ray.kill(seat.actor)
        if self._over:
            return
        if seat.number in self._queue.workers:
            self._seat(seat.number)
        else:
            self._say(f"worker {seat.number}: given up")

    def stop(self) -> None:
        """Let the clients end as Ctrl-C does, and wait for them."""
        self._over = True
        busy = {call: seat for call, seat in self._calls.items() if seat.share is not None}
        for seat in busy.values():
            seat.actor.stop.remote()
        self._calls = busy
        while self._calls:
            self._wait()

    def end(self) -> None:
        """End the workers and their servers: the machines are free while the rest is done."""
        import ray

        seats = [*self._idle, *self._calls.values()]
        ends = [seat.actor.end.remote() for seat in seats if self._work.serve]
        if ends:
            ray.wait(ends, num_returns=len(ends), timeout=END_SECONDS)
        for seat in seats:
            ray.kill(seat.actor)


def _why(error: Any) -> str:
    """What happened, without the trace of Ray and of the worker."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, UserError):
        return str(cause)
    return str(error).strip().splitlines()[0]
