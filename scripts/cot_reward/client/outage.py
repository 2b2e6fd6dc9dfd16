"""Tell a server that is out from a request that fails; pause the run until it is back."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from cot_reward.client import wire
from cot_reward.client.server import AttemptError, Kind, Server

# Seconds: what a probe may take, and the longest wait between two.
_PROBE, _BETWEEN = 10.0, 15.0
# What a last probe may take at least.
_LEAST = 0.5


class Outage:
    """Watches over one server. While it is out nothing is sent but probes.

    After `max_pause` seconds of an outage `gone` is set. `say` gets one line for each change.
    """

    def __init__(
        self,
        server: Server,
        how: wire.Sampling,
        max_pause: float,
        stop: asyncio.Event,
        say: Callable[[str], None],
    ) -> None:
        self.gone = ""
        # Called once when the server is gone for good: what is in flight will not come back.
        self.when_gone: Callable[[], object] = lambda: None
        self.seconds = 0.0
        self.pauses = 0
        self._server, self._how, self._max_pause = server, how, max_pause
        self._stop, self._say = stop, say
        self._open = asyncio.Event()
        self._open.set()
        self._check: asyncio.Task[bool] | None = None
        self._pause: asyncio.Task[None] | None = None
        self._answered_at = float("-inf")
        self._answered: bytes | None = None
        self._recent: deque[bytes] = deque(maxlen=4)

    def sending(self, content: bytes) -> None:
        """Remember a request's content as something to probe with."""
        if self._answered is None:
            self._recent.append(content)

    def answered(self, content: bytes) -> None:
        self._answered_at = time.monotonic()
        self._answered = content
        self._recent.clear()

    async def passable(self) -> bool:
        """Wait while the server is out; False when the run is over, by a signal or for good."""
        await self._open.wait()
        return not (self.gone or self._stop.is_set())

    async def caused(self, fault: AttemptError) -> bool:
        """Whether the server was out, and not the request at fault, when an attempt failed.

        Returns once it is back, or the run is over.
        """
        if fault.kind in ("refused", "overloaded"):
            return False
        # An engine that hangs has answered nobody for as long as those wait that time out now.
        lately = time.monotonic() - self._answered_at < self._how.timeout / 2
        if fault.kind == "timeout" and lately:
            return False
        if self._open.is_set():
            # One check serves all that fail at the same time.
            if self._check is None:
                self._check = asyncio.create_task(self._look(fault.kind))
            if await asyncio.shield(self._check):
                return False
        await self.passable()
        return True

    async def _look(self, kind: Kind) -> bool:
        try:
            if why := await self._trouble(kind):
                self._open.clear()
                self._pause = asyncio.create_task(self._wait(kind, why))
            return not why
        finally:
            self._check = None

    async def _wait(self, kind: Kind, why: str) -> None:
        began, wait = time.monotonic(), 0.5
        self.pauses += 1
        self._say(f"the server is out ({why}); pausing, for {self._max_pause:.0f} s at most")
        try:
            while not self._stop.is_set():
                left = began + self._max_pause - time.monotonic()
                if left <= 0:
                    self.gone = why
                    self.when_gone()
                    return
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._stop.wait(), min(wait, left))
                    return
                left = max(_LEAST, began + self._max_pause - time.monotonic())
                if not (trouble := await self._unless_stopped(self._trouble(kind), left)):
                    self._say(f"the server is back after {time.monotonic() - began:.0f} s")
                    return
                why, wait = trouble, min(2 * wait, _BETWEEN)
        finally:
            self.seconds += time.monotonic() - began
            self._open.set()

    async def _unless_stopped(self, probe: Coroutine[Any, Any, str], seconds: float) -> str:
        """The probe's finding, or that there is none in so many seconds or before the stop."""
        probing = asyncio.create_task(probe)
        stopping = asyncio.create_task(self._stop.wait())
        done, others = await asyncio.wait(
            (probing, stopping), timeout=seconds, return_when=asyncio.FIRST_COMPLETED
        )
        for task in others:
            task.cancel()
        return probing.result() if probing in done else "no answer to a probe"

    async def _trouble(self, kind: Kind) -> str:
        """What is wrong with the server, by a probe; "" when it is fine.

        A server can list its models while its engine hangs, or is gone: vLLM 0.32 answers
        "cannot schedule new futures after shutdown" then, with status 500. It therefore has to
        answer a request that it has answered before, with a single token; at the start, after a
        time-out, another than the one that failed.
        """
        try:
            listed = await self._server.models(min(_PROBE, self._how.timeout))
            if self._how.model not in listed:
                return f"it lists {', '.join(listed) or 'nothing'}, not {self._how.model}"
            if content := self._probe(kind):
                body = wire.body(content, self._how, count=1, seed=0, max_tokens=1)
                await self._server.complete(body, self._how.timeout)
        except AttemptError as fault:
            # Any answer of the engine is a sign of life.
            return "" if fault.kind in ("refused", "overloaded") else fault.detail
        return ""

    def _probe(self, kind: Kind) -> bytes | None:
        # A server that has answered nothing yet and fails at once may not like any request.
        if self._answered is not None or kind != "timeout":
            return self._answered
        # In turn: one of them may be the request that hangs.
        self._recent.rotate(1)
        return self._recent[0] if self._recent else None
