"""How many requests may be in flight: a fixed number, or as many as make the server faster."""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

LEAST, START, MOST = 4, 64, 512
# A step up has to bring this much more tokens/s to count as faster.
_FASTER = 1.05
# Rates of at least this share of the best are as good as equal to it, within their noise.
_EQUAL = 0.97
# Less than this share of the rate that was is a server that has become slower.
_SLOWER = 0.7
# A window takes at least so many seconds and requests.
_SECONDS, _REQUESTS = 1.0, 8


@dataclass
class _Window:
    """What has been seen since all slots of the present limit were first taken."""

    changed: float
    since: float = float("inf")
    requests: int = 0
    tokens: int = 0
    seconds: float = 0.0
    # Integral of the requests in flight over time, and until when it is taken.
    area: float = 0.0
    until: float = 0.0

    def rate(self) -> float:
        """Tokens per second, by Little's law: requests in flight x tokens / time per request.

        Requests that started together end together, so that counting tokens between two moments
        would depend on where the moments fall.
        """
        in_flight = self.area / max(1e-9, self.until - self.since)
        return in_flight * self.tokens / max(1e-9, self.seconds)


class Climb:
    """Finds the limit beyond which tokens/s no longer rise; pure, times come from outside.

    Doubles while that brings more. A level that does not is measured twice, for a machine may
    stall, and so is the next one; then the fastest level is settled on, and its neighbours tried
    now and then. Halves on overload (429, 503, time-outs), and from then on climbs by an
    eighth per window. Latency is no sign: batching raises it, and throughput with it.
    """

    def __init__(self, now: float, say: Callable[[str], None] = lambda line: None) -> None:
        self.limit = START
        # The best rate that each level has shown: what disturbs a measurement makes it lower.
        self.rates: dict[int, float] = {}
        self.settled = 0
        self.overloads = 0
        self._say = say
        self._window = _Window(now)
        self._again = False
        self._no_faster = 0
        self._slower = 0
        self._quiet = 0
        self._patience = 2
        self._upwards = False
        self._said = 0

    def in_flight(self, count: int, now: float) -> None:
        """`count` requests have been in flight until now."""
        window = self._window
        if window.since <= now:
            window.area += count * (now - window.until)
        elif count >= self.limit:
            # What began before had the server to itself in part, and was faster for that.
            window.since = now
        window.until = now

    def finished(self, tokens: int, began: float, now: float) -> None:
        """A request brought so many tokens."""
        window = self._window
        if began < window.since:
            return
        window.requests += 1
        window.tokens += tokens
        window.seconds += now - began
        # Once settled a longer look, for there is no hurry.
        wanted = max(_REQUESTS, 4 * self.limit if self.settled else self.limit)
        if window.requests >= wanted and now - window.since >= _SECONDS:
            self._judge(window.rate(), now)

    def overloaded(self, began: float, now: float) -> None:
        """The server had too much of a request that was sent at `began`."""
        if began < self._window.changed:
            return  # sent before the last change, which may have been the cure
        self.overloads += 1
        self.settled = 0
        limit = max(LEAST, self.limit // 2)
        # What higher levels brought is no measure for the way up to them.
        self.rates = {level: rate for level, rate in self.rates.items() if level <= limit}
        self._go(limit, now)

    def resume(self, now: float) -> None:
        """Forget the window: the server was out."""
        self._window = _Window(now)

    def _go(self, limit: int, now: float) -> None:
        self.limit = limit
        self._again = False
        self.resume(now)

    def _judge(self, rate: float, now: float) -> None:
        if self.overloads:
            self._feel(rate, now)
        elif self.settled:
            self._watch(rate, now)
        else:
            self._climb(rate, now)

    def _climb(self, rate: float, now: float) -> None:
        best = max((r for level, r in self.rates.items() if level != self.limit), default=0.0)
        rate = self.rates[self.limit] = max(rate, self.rates.get(self.limit, 0.0))
        faster = rate > _FASTER * best
        if not faster and not self._again:
            self.resume(now)
            self._again = True
            return
        self._no_faster = 0 if faster else self._no_faster + 1
        if self._no_faster < 2 and rate > _SLOWER * best and self.limit < MOST:
            self._go(min(MOST, 2 * self.limit), now)
            return
        fastest = max(self.rates.values())
        # Of levels that are as good as equal the smallest: it leaves room for others.
        self.settled = min(n for n, seen in self.rates.items() if seen >= _EQUAL * fastest)
        self._quiet = 0
        if self.settled != self._said:
            self._said = self.settled
            seen = ", ".join(f"{n}: {r:,.0f}" for n, r in sorted(self.rates.items()))
            self._say(
                f"concurrency settled on {self.settled} (tokens/s by requests in flight: {seen})"
            )
        self._go(self.settled, now)

    def _watch(self, rate: float, now: float) -> None:
        """Settled: look again when the rate stays low, and sometimes try the next level."""
        self._slower = self._slower + 1 if rate < _SLOWER * self.rates[self.settled] else 0
        self._quiet += 1
        if self._slower >= 2:
            self._say(f"the server has become slower ({rate:,.0f} tokens/s); looking again")
            self._slower = self._no_faster = self.settled = 0
            self.rates = {}
            self._go(max(LEAST, self.limit // 4), now)
        elif self._quiet >= self._patience:
            # Up and down in turn, ever less often; one level that is no faster leads back.
            self._patience *= 2
            self._upwards = not self._upwards
            self._no_faster, self.settled = 1, 0
            self.rates = {self.limit: rate}
            trial = 2 * self.limit if self._upwards else self.limit // 2
            self._go(max(LEAST, min(MOST, trial)), now)
        else:
            self.resume(now)

    def _feel(self, rate: float, now: float) -> None:
        """The server has said that there is a bound: by small steps from below."""
        best = max(self.rates.values(), default=0.0)
        self.rates[self.limit] = rate
        if rate < _SLOWER * best:
            self.rates = {}
            self._go(max(LEAST, self.limit // 2), now)
        elif rate > best / _FASTER:
            self._go(min(MOST, self.limit + max(1, self.limit // 8)), now)
        else:
            self.resume(now)


class Capacity:
    """Slots for requests, handed out in turn. `limit` None: found by climbing."""

    def __init__(self, limit: int | None, say: Callable[[str], None] = lambda line: None) -> None:
        self._climb = Climb(time.monotonic(), say) if limit is None else None
        self._limit = limit or 0
        self._in_flight = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def limit(self) -> int:
        return self._climb.limit if self._climb else self._limit

    async def acquire(self) -> None:
        if self._in_flight < self.limit and not self._waiting:
            self._change(+1)
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.release()
            raise

    def release(self) -> None:
        self._change(-1)
        while self._waiting and self._in_flight < self.limit:
            turn = self._waiting.popleft()
            if not turn.done():
                self._change(+1)
                turn.set_result(None)

    def _change(self, by: int) -> None:
        if self._climb:
            self._climb.in_flight(self._in_flight, time.monotonic())
        self._in_flight += by

    def finished(self, tokens: int, began: float) -> None:
        """A request that was sent at `began` (monotonic seconds) brought so many tokens."""
        if self._climb:
            self._change(0)
            self._climb.finished(tokens, began, time.monotonic())

    def overloaded(self, began: float) -> None:
        if self._climb:
            self._climb.overloaded(began, time.monotonic())

    def resume(self) -> None:
        """The server is back after an outage."""
        if self._climb:
            self._climb.resume(time.monotonic())

    def summary(self) -> dict[str, Any]:
        """How many requests were in flight, for the run's summary."""
        if self._climb is None:
            return {"mode": "fixed", "limit": self._limit}
        return {
            "mode": "auto",
            "limit": self.limit,
            "settled": bool(self._climb.settled),
            "tokens_per_second": {
                str(n): round(r, 1) for n, r in sorted(self._climb.rates.items())
            },
            "overloads": self._climb.overloads,
        }
