"""An event loop in a thread of its own: what runs there works in notebooks and in trainers, too."""

import asyncio
import os
import selectors
import threading
import weakref
from collections.abc import Coroutine
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")

_LOOPS: "weakref.WeakSet[LoopThread]" = weakref.WeakSet()


class LoopThread:
    """All coroutines of an object run on one loop, whoever asks for them."""

    def __init__(self, name: str) -> None:
        self._selector = selectors.DefaultSelector()
        self._loop = asyncio.SelectorEventLoop(self._selector)
        _LOOPS.add(self)
        self._process = os.getpid()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self._loop.run_forever()
        self._loop.close()

    def _left_behind(self) -> None:
        # The kernel's list of watched connections is shared with the parent, which would wait for
        # ever on connections that this process takes out of it when it tidies up.
        self._selector.close()

    @property
    def is_here(self) -> bool:
        """Whether the thread is of this process; a fork copies the object alone."""
        return self._process == os.getpid()

    def begin(self, call: Coroutine[Any, Any, T]) -> Future[T]:
        """Have a coroutine run. Raises RuntimeError in a process that was forked since."""
        if not self.is_here:
            call.close()
            raise RuntimeError(
                "this RewardModel was used before the process was forked; make one in each process"
            )
        return asyncio.run_coroutine_threadsafe(call, self._loop)

    def end(self, last: Coroutine[Any, Any, object]) -> None:
        """Have a last coroutine run, and the loop end with it; this does not wait."""

        async def finish() -> None:
            try:
                await last
            finally:
                self._loop.stop()

        self.begin(finish())

    def stop(self) -> None:
        """End the loop, and wait until its thread has ended."""
        if self._thread.is_alive():
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()


def result_of(call: Future[T], seconds: float | None = None) -> T:
    """Wait for a call; an interrupt, or the end of so many seconds (TimeoutError), cancels it."""
    try:
        return call.result(seconds)
    except BaseException:
        call.cancel()
        raise


def _leave_to_parent() -> None:
    for loop in list(_LOOPS):
        loop._left_behind()


os.register_at_fork(after_in_child=_leave_to_parent)
