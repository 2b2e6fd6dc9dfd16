"""An event loop in a thread of its own: what runs there works in notebooks and in trainers, too."""

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class LoopThread:
    """All coroutines of an object run on one loop, whoever asks for them."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        """Wait for a coroutine; an interrupt cancels it."""
        found = asyncio.run_coroutine_threadsafe(call, self._loop)
        try:
            return found.result()
        except BaseException:
            found.cancel()
            raise

    async def wait(self, call: Coroutine[Any, Any, T]) -> T:
        """The same from another loop; cancelling it cancels the coroutine."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(call, self._loop))

    def stop(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
