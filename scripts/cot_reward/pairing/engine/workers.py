"""Work on several cores: results in the order of the tasks, and few tasks in memory."""

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Self, TypeVar

from cot_reward.errors import UserError

Task = TypeVar("Task")
Result = TypeVar("Result")


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start(parent: int) -> None:
    # The parent ends its workers on Ctrl-C; a parent that was killed cannot.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class Workers:
    """`count` processes, or this one alone when that is 1. Use as `with Workers(2) as workers`."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._pool: ProcessPoolExecutor | None = None

    def map(self, work: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
        """Results in the order of the tasks, of which two a process are taken ahead.

        Raises UserError when a process was killed, and what `work` raises.
        """
        if self.count == 1:
            yield from map(work, tasks)
            return
        if self._pool is None:
            # Not forked: the engine's threads could leave locks behind.
            self._pool = ProcessPoolExecutor(
                self.count, multiprocessing.get_context("spawn"), _start, (os.getpid(),)
            )
        ahead: deque[Future[Result]] = deque()
        try:
            for task in tasks:
                ahead.append(self._pool.submit(work, task))
                if len(ahead) > 2 * self.count:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        except BrokenProcessPool:
            raise UserError(
                "a worker process was killed, perhaps for want of memory; try --workers 1"
            ) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
