"""Outages: tell a server that is out from a request that fails; pause the run until it is back."""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext, suppress
from typing import Any

from cot_reward.client import wire
from cot_reward.client.server import AttemptError, Server, ServerError

# The first half of a probe, the list of models.
MODELS_TIMEOUT_SECONDS = 10.0
# The wait between two probes of a pause doubles from the first to the second of these.
FIRST_PAUSE_INTERVAL_SECONDS, MAX_PAUSE_INTERVAL_SECONDS = 0.5, 15.0
# The last probe before the server is given up has at least this long.
MIN_LAST_PROBE_SECONDS = 0.5
# So many probes in a row must fail before a pause begins, because a single probe may meet a fault
# of its own. A probe that times out is enough.
PROBES_BEFORE_PAUSE = 3
PROBE_INTERVAL_SECONDS = 0.25
# A server that lists its models, and not the one that is asked for, is not coming back with it: it
# was started with another one. So long it may still be loading an adapter.
MAX_OTHER_MODEL_SECONDS = 60.0
# What a probe asks before any request has been answered.
PLAIN_CONTENT = wire.content("Say yes.", ())


class Outage:
    """Watches over one server. While the server is out, nothing is sent but probes.

    After `max_pause` seconds of an outage `gone` says so, and earlier where another model is
    served. `say` gets one line for each change.
    `check_back` is asked when the server answers again, also after a connection that broke: whoever
    started it again may have started another model. It raises ServerError when the server cannot
    be used any more. While it raises one that may pass, the server is out.
    """

    def __init__(
        self,
        server: Server,
        sampling: wire.Sampling,
        max_pause: float,
        stop: asyncio.Event,
        say: Callable[[str], None],
        check_back: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        # Why the server was given up; "" while it was not.
        self.gone = ""
        # Whether the last pause was for a server that is up, but takes no more requests.
        self.full = False
        # Called when a pause begins or ends, and when the server is given up.
        self.when_changed: Callable[[], object] = lambda: None
        self.seconds = 0.0
        self.pauses = 0
        self._server, self._sampling, self._max_pause = server, sampling, max_pause
        self._stop, self._say, self._check_back = stop, say, check_back
        self._open = asyncio.Event()
        self._open.set()
        self._check: asyncio.Task[bool] | None = None
        # A connection broke: another server may stand behind the address by now.
        self._broke = False
        self._pause: asyncio.Task[None] | None = None
        self._one_suspect = asyncio.Lock()
        self._answered_at = float("-inf")
        self._answered_content = PLAIN_CONTENT

    def answered(self, content: bytes) -> None:
        """A request with this content was answered: later probes ask it again."""
        self._answered_at = time.monotonic()
        self._answered_content = content

    @property
    def open(self) -> bool:
        """Whether requests may be sent now."""
        return self._open.is_set() and not self.gone

    def give_up(self, why: str) -> None:
        self.gone = why
        self.when_changed()

    async def wait_until_open(self) -> bool:
        """Wait while the server is out; False when the run is stopped or the server given up."""
        await self._open.wait()
        return not (self.gone or self._stop.is_set())

    @asynccontextmanager
    async def attempt(self, suspect: bool) -> AsyncGenerator[bool, None]:
        """Around an attempt and the call of `caused` about it; yields `wait_until_open()`.

        Suspects are requests that were in flight in several outages. Only one of them is in flight
        at a time, so the request that takes the server down is distinguished from its neighbours.
        """
        async with self._one_suspect if suspect else nullcontext():
            yield await self.wait_until_open()

    async def caused(self, fault: AttemptError) -> bool:
        """Whether an attempt failed because the server was out, and not because of its request."""
        if fault.kind == "refused":
            return False
        # If the engine hangs, no request has been answered for at least one time-out.
        answered_lately = time.monotonic() - self._answered_at < self._sampling.timeout / 2
        if fault.kind == "timeout" and answered_lately:
            return False
        # An answer of unknown length that is cut off is malformed.
        self._broke |= fault.kind in ("unreachable", "malformed")
        if self._open.is_set():
            # One check serves all attempts that fail at the same time.
            if self._check is None:
                self._check = asyncio.create_task(self._check_server())
            if await asyncio.shield(self._check):
                return False
        return True

    async def _check_server(self) -> bool:
        """Whether the server is fine; begins a pause if it is not."""
        try:
            fault, probes = await self._probe(None), 1
            while fault and fault.kind != "timeout" and probes < PROBES_BEFORE_PAUSE:
                await asyncio.sleep(PROBE_INTERVAL_SECONDS)
                fault, probes = await self._probe(None), probes + 1
            if self._broke and not fault:
                self._broke = False
                if (fault := await self._fault_now_back(None)) is None and self.gone:
                    self.give_up(self.gone)
                    return False
            if fault and not self._stop.is_set():
                self.full = fault.kind == "overloaded"
                self._open.clear()
                self.when_changed()
                self._pause = asyncio.create_task(self._pause_until_back(fault.detail))
            return fault is None
        finally:
            self._check = None

    async def _pause_until_back(self, why: str) -> None:
        began, interval, announced = time.monotonic(), FIRST_PAUSE_INTERVAL_SECONDS, False
        other_since: float | None = None
        self.pauses += 1
        try:
            while not self._stop.is_set():
                # A server that is full for a moment is not worth a message.
                paused = time.monotonic() - began
                if not announced and (not self.full or paused > MAX_PAUSE_INTERVAL_SECONDS):
                    announced = True
                    state = "full" if self.full else "out"
                    self._say(
                        f"the server is {state} ({why}); "
                        f"pausing, for {self._max_pause:.0f} s at most"
                    )
                left = began + self._max_pause - time.monotonic()
                if left <= 0:
                    self.gone = f"the server was out for more than {self._max_pause:.0f} s ({why})"
                    return
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._stop.wait(), min(interval, left))
                    return
                left = max(MIN_LAST_PROBE_SECONDS, began + self._max_pause - time.monotonic())
                if not (fault := await self._probe(left) or await self._fault_now_back(left)):
                    if announced and not self.gone:
                        self._say(f"the server is back after {time.monotonic() - began:.0f} s")
                    return
                if fault.kind != "other_model":
                    other_since = None
                elif other_since is None:
                    other_since = time.monotonic()
                elif time.monotonic() - other_since > MAX_OTHER_MODEL_SECONDS:
                    self.gone = f"the server has another model ({fault.detail})"
                    return
                self.full = fault.kind == "overloaded"
                why, interval = fault.detail, min(2 * interval, MAX_PAUSE_INTERVAL_SECONDS)
        except ServerError:
            # The key is refused now. The next request meets the same error and ends the run.
            pass
        finally:
            self.seconds += time.monotonic() - began
            self._open.set()
            self.when_changed()

    async def _fault_now_back(self, seconds: float | None) -> AttemptError | None:
        """What keeps a server that answers again from being asked now; None: nothing, or `gone`.

        It is looked for within so many seconds (None: unbounded).
        """
        if self._check_back is None:
            return None
        checking = asyncio.ensure_future(self._check_back())
        await self._wait_for(checking, seconds)
        if checking.cancelled():
            return AttemptError("timeout", "no answer to the first question")
        error = checking.exception()
        if not isinstance(error, ServerError):
            checking.result()
            return None
        if error.may_pass:
            return AttemptError("error", str(error))
        self.gone = str(error)
        return None

    async def _wait_for(self, asked: asyncio.Future[Any], seconds: float | None) -> None:
        """Wait until it is done; it is cancelled after so many seconds, or when the run stops."""
        stopping = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait(
                (asked, stopping), timeout=seconds, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            stopping.cancel()
            if not asked.done():
                asked.cancel()
                await asyncio.wait((asked,))

    async def _probe(self, seconds: float | None) -> AttemptError | None:
        """What is wrong with the server, within so many seconds (None: unbounded); None when fine.

        A probe that times out fails, and so does a probe without an answer when the run is stopped.
        But when a request is answered meanwhile, the probe only waits for its turn, and the server
        is fine.
        """
        began = time.monotonic()
        probing = asyncio.create_task(self._find_fault())
        await self._wait_for(probing, seconds)
        fault = (
            AttemptError("timeout", "no answer to a probe")
            if probing.cancelled()
            else probing.result()
        )
        queued = fault and fault.kind == "timeout" and self._answered_at > began
        return None if queued else fault

    async def _find_fault(self) -> AttemptError | None:
        """What is wrong with the server, by one or two requests; None when it is fine.

        A server can list its models while its engine hangs or is dead: vLLM 0.32 then answers for
        up to ten seconds with status 500, "cannot schedule new futures after shutdown". So the
        server must also answer a request that it has answered before, with a single token.
        """
        try:
            listed = await self._server.list_models(
                min(MODELS_TIMEOUT_SECONDS, self._sampling.timeout)
            )
        except AttemptError as fault:
            return None if fault.kind == "refused" else fault
        if self._sampling.model not in listed:
            found = f"it lists {', '.join(listed) or 'nothing'}, not {self._sampling.model}"
            return AttemptError("other_model" if listed else "unknown", found)
        body = wire.body(self._answered_content, self._sampling, count=1, seed=0, max_tokens=1)
        try:
            await self._server.complete(body, self._sampling.timeout)
        except AttemptError as fault:
            if fault.kind == "unavailable":
                return AttemptError("overloaded", fault.detail)
            # Any answer of the engine is a sign of life.
            return None if fault.kind in ("refused", "malformed") else fault
        return None
