"""Worker processes: results in the order of the tasks, and few tasks in memory at a time."""

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from cot_reward.errors import UserError

# With less input, starting processes takes longer than they save.
MIN_BYTES_FOR_PROCESSES = 2**25

Task = TypeVar("Task")
Result = TypeVar("Result")


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def worker_count(files: Sequence[Path], wanted: int) -> int:
    """How many processes to start for files: `wanted` (0: one for each core), or 1 for few bytes.

    A pipe also gets one process: its size is unknown, and only one process can read it.
    """
    sizes = [path.stat().st_size for path in files if path.is_file()]
    if sum(sizes) < MIN_BYTES_FOR_PROCESSES or len(sizes) < len(files):
        return 1
    return wanted or cores()


def _start_worker(parent: int) -> None:
    # On Ctrl-C the parent ends its workers. A parent that was killed cannot, so the worker watches.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def end_with_parent() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


class Workers:
    """`count` processes; 1 means this process alone. Use as `with Workers(2) as workers`."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._pool: ProcessPoolExecutor | None = None

    def map(self, work: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
        """Results in the order of the tasks; at most two tasks a process are taken ahead.

        Raises UserError when a process was killed, and every error of `work`.
        """
        if self.count == 1:
            yield from map(work, tasks)
            return
        if self._pool is None:
            # Not forked: a copy of the engine's threads could hold locks for ever.
            self._pool = ProcessPoolExecutor(
                self.count, multiprocessing.get_context("spawn"), _start_worker, (os.getpid(),)
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
                "a worker process was killed, perhaps because memory was full; try --workers 1"
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
