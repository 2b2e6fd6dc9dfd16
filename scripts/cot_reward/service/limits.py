"""What bounds a request: its place among others, its bytes, and its time."""

import asyncio
import contextlib
import math
import time
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Coroutine,
    Generator,
    Mapping,
)
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from cot_reward.service.refusals import ClosedByClientError, RefusalError

T = TypeVar("T")
Receive = Callable[[], Awaitable[Any]]

# Callers who are turned away come back after as long as the queue is thought to take, within these.
MIN_RETRY_SECONDS, MAX_RETRY_SECONDS = 1, 60
# The weight of the last request in the mean time of requests.
_NEWEST = 0.05
# How long an ended request may take to let go of what it holds, before its answer is sent anyway.
_CANCEL_SECONDS = 1.0
# A body has so long to begin, and then comes at least so fast: a place is not held by a caller that
# sends a byte now and then.
_BODY_SECONDS, _BODY_BYTES_PER_SECOND = 10.0, 2**14
# A body that is refused is read on for so long, and thrown away: a caller that is still sending
# does not read an answer, and would see a broken connection instead.
_DISCARD_SECONDS, _DISCARD_BODIES = 2.0, 4


class Places:
    """Places for requests: some are worked on, some wait in turn, more are turned away.

    The bodies of all of them together are bounded, too.
    """

    def __init__(self, working: int, queued: int, buffered_bytes: int) -> None:
        self.inside = self.working = self.buffered = 0
        self._most = working + queued
        self._slots, self._most_working = asyncio.Semaphore(working), working
        self._most_bytes = buffered_bytes
        self._mean_seconds = 1.0
        # Set when the service is stopped and its grace is over: whoever is inside gives up.
        self.closed = asyncio.Event()

    @property
    def queued(self) -> int:
        return self.inside - self.working

    def retry_after(self) -> int:
        """Seconds in which the queue is probably shorter."""
        seconds = self._mean_seconds * max(1, self.queued) / self._most_working
        return min(MAX_RETRY_SECONDS, max(MIN_RETRY_SECONDS, math.ceil(seconds)))

    @contextlib.contextmanager
    def enter(self) -> Generator[None, None, None]:
        """A place inside, before the body is read. Raises RefusalError when there is none."""
        if self.inside >= self._most:
            raise RefusalError(
                503, "queue_full",
                f"{self.inside} requests are being worked on or waiting, which is all that this "
                "service takes; try again later", self.retry_after(),
            )  # fmt: skip
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1

    @asynccontextmanager
    async def work(self) -> AsyncGenerator[None, None]:
        """Waits for its turn."""
        async with self._slots:
            self.working += 1
            began = time.monotonic()
            try:
                yield
            finally:
                self.working -= 1
                self._mean_seconds += _NEWEST * (time.monotonic() - began - self._mean_seconds)

    def buffer(self, size: int) -> None:
        """So many bytes more (or less) are held. Raises RefusalError when there is no room."""
        if size > 0 and self.buffered + size > self._most_bytes:
            raise RefusalError(
                503, "memory_full",
                "the bodies of the requests that are waiting fill the memory that this service "
                "has for them; try again later", self.retry_after(),
            )  # fmt: skip
        self.buffered += size


class Body:
    """Reads a request's body within its limits; of a chunked body the size is not known before."""

    def __init__(self, receive: Receive, headers: Mapping[str, str], most: int) -> None:
        self.complete = False
        self._receive, self._most, self._headers = receive, most, headers
        self._began = False

    def _too_large(self) -> RefusalError:
        return RefusalError(
            413, "too_large", f"the body is larger than {self._most:,} bytes; send smaller pictures"
        )

    async def read(self, places: Places) -> bytearray:
        """The body; its bytes are counted in `places` until the caller gives them back.

        Raises RefusalError for one that is too large or too slow, ClosedByClientError.
        """
        declared = self._headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > self._most:
            raise self._too_large()
        # One buffer: a body in pieces of a byte each would take forty times its size as a list.
        read = bytearray()
        began = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(_BODY_SECONDS) as limit:
                async for part in self._parts():
                    if len(read) + len(part) > self._most:
                        raise self._too_large()
                    places.buffer(len(part))
                    read += part
                    limit.reschedule(began + _BODY_SECONDS + len(read) / _BODY_BYTES_PER_SECOND)
            return read
        except TimeoutError:
            places.buffer(-len(read))
            raise RefusalError(
                408, "slow_body",
                f"{len(read):,} bytes of the body came in {_BODY_SECONDS:g} s and more; it must "
                f"come at {_BODY_BYTES_PER_SECOND:,} bytes a second",
            ) from None  # fmt: skip
        except BaseException:
            places.buffer(-len(read))
            raise

    async def _parts(self) -> AsyncGenerator[bytes, None]:
        while not self.complete:
            self._began = True
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClosedByClientError
            self.complete = not message.get("more_body", False)
            yield message.get("body", b"")

    async def discard(self) -> None:
        """Read what is left of a refused body, within bounds, so that the answer is read."""
        if not self._began and "expect" in self._headers:
            # The caller waits for a word before it sends the body, and takes the answer for it.
            return
        size = 0
        with contextlib.suppress(TimeoutError, ClosedByClientError):
            async with asyncio.timeout(_DISCARD_SECONDS):
                async for part in self._parts():
                    size += len(part)
                    if size > _DISCARD_BODIES * self._most:
                        return


async def within(
    work: Coroutine[Any, Any, T], until: float, receive: Receive | None, closed: asyncio.Event
) -> T:
    """The result of `work`, which ends with the time (of the loop), the caller, or the service.

    receive: tells that the caller has gone; None: `work` itself looks at it
    Raises TimeoutError, ClosedByClientError, RefusalError, and whatever `work` raises.
    """
    loop = asyncio.get_running_loop()
    task = loop.create_task(work)
    closing = loop.create_task(closed.wait())
    gone = loop.create_task(_gone(receive)) if receive else None
    tasks = [one for one in (task, closing, gone) if one]
    try:
        await asyncio.wait(
            tasks, timeout=max(0.0, until - loop.time()),
            return_when=asyncio.FIRST_COMPLETED,
        )  # fmt: skip
        if task.done():
            return task.result()
        if gone and gone.done():
            raise ClosedByClientError
        if closing.done():
            raise RefusalError(503, "shutting_down", "the service is being stopped; try again", 1)
        raise TimeoutError
    finally:
        for one in tasks:
            one.cancel()
        await asyncio.wait(tasks, timeout=_CANCEL_SECONDS)
        if task.done() and not task.cancelled():
            # Marked as seen: of a request that is over, nobody asks for its error.
            task.exception()


async def _gone(receive: Receive) -> None:
    """Returns when the caller closes the connection, after its body has come."""
    while (await receive())["type"] != "http.disconnect":
        pass
