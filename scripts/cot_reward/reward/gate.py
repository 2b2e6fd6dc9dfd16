"""A gate that lets only so much through at a time, by a bound that may change."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager


class Gate:
    """Use as `async with gate.through(weight)`. Who waits passes in turn.

    `bound` is asked each time. Prepared pictures take hundreds of kilobytes each, so that memory
    depends on this number. One heavier than the bound passes alone.
    """

    def __init__(self, bound: Callable[[], int]) -> None:
        self._bound, self._inside = bound, 0
        self._waiting: deque[tuple[asyncio.Future[None], int]] = deque()

    @asynccontextmanager
    async def through(self, weight: int = 1) -> AsyncGenerator[None, None]:
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((turn, weight))
        self._let_in()
        try:
            await turn
            yield
        finally:
            if turn.done() and not turn.cancelled():
                self._inside -= weight
            self._let_in()

    def _let_in(self) -> None:
        while self._waiting:
            turn, weight = self._waiting[0]
            if not turn.done():
                if self._inside and self._inside + weight > self._bound():
                    return
                self._inside += weight
                turn.set_result(None)
            self._waiting.popleft()
