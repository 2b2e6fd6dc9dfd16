"""Tell a server that is out from a request that fails; pause the run until it is back."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, nullcontext, suppress

from cot_reward.client import wire
from cot_reward.client.server import AttemptError, Server, ServerError

# Seconds: what a probe's first half may take, and the longest wait between two in a pause.
_PROBE, _BETWEEN = 10.0, 15.0
# What a last probe may take at least.
_LEAST = 0.5
# So many probes in a row, so many seconds apart, must fail: one may meet a fault of its own. One
# that times out is enough.
_PROBES, _APART = 3, 0.25
# To probe with before anything has been answered.
_PLAIN = wire.content("Say yes.", "<image>", ())


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
        # Whether the last pause was for a server that is up, but takes no more requests.
        self.full = False
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
        self._alone = asyncio.Lock()
        self._answered_at = float("-inf")
        self._answered = _PLAIN

    def answered(self, content: bytes) -> None:
        """A request with this content was answered: it is something to probe with."""
        self._answered_at = time.monotonic()
        self._answered = content

    async def passable(self) -> bool:
        """Wait while the server is out; False when the run is over, by a signal or for good."""
        await self._open.wait()
        return not (self.gone or self._stop.is_set())

    @asynccontextmanager
    async def attempt(self, suspect: bool) -> AsyncGenerator[bool, None]:
        """Around an attempt and the question whose fault it was; yields what `passable` gives.

        Suspects, which were in flight in several outages, go one at a time: the one that takes the
        server down is then not taken for its neighbours.
        """
        async with self._alone if suspect else nullcontext():
            yield await self.passable()

    async def caused(self, fault: AttemptError) -> bool:
        """Whether the server was out, and not the request at fault, when an attempt failed.

        Returns once it is back, or the run is over.
        """
        if fault.kind == "refused":
            return False
        # An engine that hangs has answered nobody for as long as those wait that time out now.
        lately = time.monotonic() - self._answered_at < self._how.timeout / 2
        if fault.kind == "timeout" and lately:
            return False
        if self._open.is_set():
            # One check serves all that fail at the same time.
            if self._check is None:
                self._check = asyncio.create_task(self._look())
            if await asyncio.shield(self._check):
                return False
        await self.passable()
        return True

    async def _look(self) -> bool:
        """Whether the server is fine; begins a pause if it is not."""
        try:
            trouble, probes = await self._probe(None), 1
            while trouble and trouble.kind != "timeout" and probes < _PROBES:
                await asyncio.sleep(_APART)
                trouble, probes = await self._probe(None), probes + 1
            if trouble and not self._stop.is_set():
                self.full = trouble.kind == "overloaded"
                self._open.clear()
                self._pause = asyncio.create_task(self._wait(trouble.detail))
            return trouble is None
        finally:
            self._check = None

    async def _wait(self, why: str) -> None:
        began, wait, said = time.monotonic(), 0.5, False
        self.pauses += 1
        try:
            while not self._stop.is_set():
                # A server that is full for a moment is not worth a word.
                if not said and (not self.full or time.monotonic() - began > _BETWEEN):
                    said = True
                    what, most = "full" if self.full else "out", self._max_pause
                    self._say(f"the server is {what} ({why}); pausing, for {most:.0f} s at most")
                left = began + self._max_pause - time.monotonic()
                if left <= 0:
                    self.gone = why
                    self.when_gone()
                    return
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._stop.wait(), min(wait, left))
                    return
                left = max(_LEAST, began + self._max_pause - time.monotonic())
                if not (trouble := await self._probe(left)):
                    if said:
                        self._say(f"the server is back after {time.monotonic() - began:.0f} s")
                    return
                self.full = trouble.kind == "overloaded"
                why, wait = trouble.detail, min(2 * wait, _BETWEEN)
        except ServerError:
            # The key is refused now: the requests meet that themselves, and end the run.
            pass
        finally:
            self.seconds += time.monotonic() - began
            self._open.set()

    async def _probe(self, seconds: float | None) -> AttemptError | None:
        """What is wrong with the server; also that it says nothing in so many seconds.

        A probe that has no answer before the run is stopped fails, and so does one that times out;
        but not where others are answered meanwhile, and it only waits for its turn.
        """
        began = time.monotonic()
        probing = asyncio.create_task(self._trouble())
        stopping = asyncio.create_task(self._stop.wait())
        done, others = await asyncio.wait(
            (probing, stopping), timeout=seconds, return_when=asyncio.FIRST_COMPLETED
        )
        for task in others:
            task.cancel()
        trouble = (
            probing.result() if probing in done else AttemptError("timeout", "no answer to a probe")
        )
        waits = trouble and trouble.kind == "timeout" and self._answered_at > began
        return None if waits else trouble

    async def _trouble(self) -> AttemptError | None:
        """What is wrong with the server, by a request or two; None when it is fine.

        A server can list its models while its engine hangs or is gone: vLLM 0.32 then answers for
        up to ten seconds with status 500, "cannot schedule new futures after shutdown". It has to
        answer a request that it has answered before as well, with a single token.
        """
        try:
            listed = await self._server.models(min(_PROBE, self._how.timeout))
        except AttemptError as fault:
            return None if fault.kind == "refused" else fault
        if self._how.model not in listed:
            what = f"it lists {', '.join(listed) or 'nothing'}, not {self._how.model}"
            return AttemptError("unknown", what)
        body = wire.body(self._answered, self._how, count=1, seed=0, max_tokens=1)
        try:
            await self._server.complete(body, self._how.timeout)
        except AttemptError as fault:
            if fault.kind == "unavailable":
                return AttemptError("overloaded", fault.detail)
            # Any answer of the engine is a sign of life.
            return None if fault.kind in ("refused", "malformed") else fault
        return None
