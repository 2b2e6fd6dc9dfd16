"""How many requests may be in flight: a fixed number, or as many as make the server faster."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

MIN_CONCURRENCY, START_CONCURRENCY, MAX_CONCURRENCY = 4, 64, 512
# Rates (tokens/s) against the best rate of other levels: above the first a level is faster, from
# the second on it is as good as equal within the noise, below the third the server is slower.
FASTER_RATIO, EQUAL_RATIO, SLOWER_RATIO = 1.05, 0.97, 0.7
# A window lasts at least so many seconds and requests, and at least one request per slot; once the
# climb has settled, several requests per slot, because there is no hurry.
MIN_WINDOW_SECONDS, MIN_WINDOW_REQUESTS = 1.0, 8
SETTLED_REQUESTS_PER_SLOT = 4
# Settled windows before the first trial of a neighbouring level; doubles with each trial.
FIRST_TRIAL_WINDOWS = 2
# Slow windows in a row after which a settled climb looks again, from a quarter of its level.
SLOW_WINDOWS = 2
# Below a known bound, each window without an overload adds the limit divided by this.
CAREFUL_STEP_DIVISOR = 8


@dataclass
class _Window:
    """What has been seen since all slots of the present limit were first taken."""

    limit_set_at: float
    full_since: float = float("inf")
    requests: int = 0
    tokens: int = 0
    # Summed over the requests.
    request_seconds: float = 0.0
    # Integral of the requests in flight over time, up to `measured_until`.
    slot_seconds: float = 0.0
    measured_until: float = 0.0

    def rate(self) -> float:
        """Tokens per second, by Little's law: requests in flight x tokens / time per request.

        Requests that started together end together, so tokens counted between two moments would
        depend on where the moments fall.
        """
        in_flight = self.slot_seconds / max(1e-9, self.measured_until - self.full_since)
        return in_flight * self.tokens / max(1e-9, self.request_seconds)


class Climb:
    """Finds the limit beyond which tokens/s no longer rise; pure, times come from outside.

    The limit doubles while that brings more. A level that brings no more is measured twice, for a
    machine may stall, and so is the next one. Then the climb settles on the fastest level and tries
    its neighbours now and then. The limit halves on overload (429, 503, time-outs), and from then
    on climbs by an eighth per window. Latency is no sign of overload: batching raises it, and
    throughput with it. `share`: as many processes ask the same server, each with its own climb.
    """

    def __init__(
        self, now: float, say: Callable[[str], None] = lambda line: None, share: int = 1
    ) -> None:
        self._max_limit = max(MIN_CONCURRENCY, MAX_CONCURRENCY // share)
        self.limit = max(MIN_CONCURRENCY, START_CONCURRENCY // share)
        # The best rate that each level has shown: whatever disturbs a measurement makes it lower.
        self.rates: dict[int, float] = {}
        # The level that the climb has settled on; 0 while it looks for one.
        self.settled = 0
        self.overloads = 0
        self._say = say
        self._window = _Window(now)
        self._measuring_again = False
        self._levels_without_gain = 0
        self._slow_windows = 0
        self._settled_windows = 0
        self._windows_before_trial = FIRST_TRIAL_WINDOWS
        self._last_trial_was_up = False
        self._announced_level = 0
        self._in_flight = 0

    def in_flight(self, count: int, now: float) -> None:
        """`count` requests have been in flight until now."""
        self._in_flight = count
        window = self._window
        if window.full_since <= now:
            window.slot_seconds += count * (now - window.measured_until)
        elif count >= self.limit:
            # Earlier requests shared the server with fewer others, and were faster for it.
            window.full_since = now
        window.measured_until = now

    def finished(self, tokens: int, began: float, now: float) -> None:
        """A request that was sent at `began` brought so many tokens."""
        window = self._window
        if began < window.full_since:
            return
        window.requests += 1
        window.tokens += tokens
        window.request_seconds += now - began
        requests_per_slot = SETTLED_REQUESTS_PER_SLOT if self.settled else 1
        wanted = max(MIN_WINDOW_REQUESTS, requests_per_slot * self.limit)
        if window.requests >= wanted and now - window.full_since >= MIN_WINDOW_SECONDS:
            self._use(window.rate(), now)

    def overloaded(self, began: float, now: float) -> None:
        """The server rejected a request that was sent at `began`, or did not answer in time."""
        if began < self._window.limit_set_at:
            return  # sent before the last change of the limit, which may have been the cure
        if self.overloads and self._in_flight > self.limit:
            # A rejected request keeps its slot while it backs off: until the slots above the lower
            # limit are free, further rejections are the same burst.
            return
        self.overloads += 1
        self.settled = 0
        limit = max(MIN_CONCURRENCY, self.limit // 2)
        # The rates of higher levels are no measure for the way up to them.
        self.rates = {level: rate for level, rate in self.rates.items() if level <= limit}
        self._set_limit(limit, now)

    def resume(self, now: float) -> None:
        """Begin a new window, also after the server was out."""
        self._window = _Window(now)

    def _set_limit(self, limit: int, now: float) -> None:
        self.limit = min(self._max_limit, max(MIN_CONCURRENCY, limit))
        self._measuring_again = False
        self.resume(now)

    def _use(self, rate: float, now: float) -> None:
        """Decide on the next limit by the rate of a full window."""
        if self.overloads:
            self._climb_below_bound(rate, now)
        elif self.settled:
            self._watch(rate, now)
        else:
            self._climb(rate, now)

    def _climb(self, rate: float, now: float) -> None:
        best = max((r for level, r in self.rates.items() if level != self.limit), default=0.0)
        rate = self.rates[self.limit] = max(rate, self.rates.get(self.limit, 0.0))
        faster = rate > FASTER_RATIO * best
        if not faster and not self._measuring_again:
            self.resume(now)
            self._measuring_again = True
            return
        self._levels_without_gain = 0 if faster else self._levels_without_gain + 1
        may_go_on = self._levels_without_gain < 2 and rate > SLOWER_RATIO * best
        if may_go_on and self.limit < self._max_limit:
            self._set_limit(2 * self.limit, now)
            return
        fastest = max(self.rates.values())
        # The smallest of the levels that are as good as equal: it leaves room for other clients.
        self.settled = min(n for n, seen in self.rates.items() if seen >= EQUAL_RATIO * fastest)
        self._settled_windows = 0
        if self.settled != self._announced_level:
            self._announced_level = self.settled
            rates = ", ".join(f"{n}: {r:,.0f}" for n, r in sorted(self.rates.items()))
            self._say(
                f"concurrency settled on {self.settled} (tokens/s by requests in flight: {rates})"
            )
        self._set_limit(self.settled, now)

    def _watch(self, rate: float, now: float) -> None:
        """Settled: look again when the rate stays low, and now and then try the next level."""
        slow = rate < SLOWER_RATIO * self.rates[self.settled]
        self._slow_windows = self._slow_windows + 1 if slow else 0
        self._settled_windows += 1
        if self._slow_windows >= SLOW_WINDOWS:
            self._say(f"the server has become slower ({rate:,.0f} tokens/s); looking again")
            self._slow_windows = self._levels_without_gain = self.settled = 0
            self.rates = {}
            self._set_limit(self.limit // 4, now)
        elif self._settled_windows >= self._windows_before_trial:
            # Up and down in turn, ever less often; one level without gain leads back.
            self._windows_before_trial *= 2
            self._last_trial_was_up = not self._last_trial_was_up
            self._levels_without_gain, self.settled = 1, 0
            self.rates = {self.limit: rate}
            self._set_limit(2 * self.limit if self._last_trial_was_up else self.limit // 2, now)
        else:
            self.resume(now)

    def _climb_below_bound(self, rate: float, now: float) -> None:
        """The server has rejected requests, so it has a bound: go up by small steps."""
        best = max(self.rates.values(), default=0.0)
        self.rates[self.limit] = rate
        if rate < SLOWER_RATIO * best:
            self.rates = {}
            self._set_limit(self.limit // 2, now)
        elif rate > best / FASTER_RATIO:
            self._set_limit(self.limit + max(1, self.limit // CAREFUL_STEP_DIVISOR), now)
        else:
            self.resume(now)


class Capacity:
    """The requests in flight at one server, and how many may be. `limit` None: found by climbing.

    `share`: of a limit that several processes share, each has this part (see `Climb`).
    """

    def __init__(
        self, limit: int | None, say: Callable[[str], None] = lambda line: None, share: int = 1
    ) -> None:
        self._climb = Climb(time.monotonic(), say, share) if limit is None else None
        self._limit = -(-(limit or 0) // share)
        self.in_flight = 0

    @property
    def limit(self) -> int:
        return self._climb.limit if self._climb else self._limit

    @property
    def free(self) -> bool:
        return self.in_flight < self.limit

    def take(self) -> None:
        self._change_in_flight(+1)

    def release(self) -> None:
        self._change_in_flight(-1)

    def _change_in_flight(self, by: int) -> None:
        if self._climb:
            self._climb.in_flight(self.in_flight, time.monotonic())
        self.in_flight += by

    def finished(self, tokens: int, began: float) -> None:
        """A request that was sent at `began` (monotonic seconds) brought so many tokens."""
        if self._climb:
            self._change_in_flight(0)
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
