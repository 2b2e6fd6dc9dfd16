"""Does the climb of `--concurrency auto` earn its lines? The client against simulated servers.

    .envs/main/bin/python tests/bench/climb.py [--requests 10000] [--seed 0] [--only WORD]

The real client (flow, outage, capacity) runs in simulated time, against a server that shares its
tokens/s among the requests in flight. These ways to choose the concurrency are compared: the climb,
a fixed 64, a fixed 256, and a rule of a few lines (start at 256, halve on overload, add an eighth
per window without overload; up to 512). After a halving the climb waits until no more requests are
in flight than the new limit, before it takes another overload as a reason to halve; "undrained" is
the climb without, and "rule, drained" the rule with this wait. A run lasts as long as the best
concurrency needs for `--requests`. Printed is the share of the highest rate that the server can
give: over the whole run, and over its second half. All of it takes two to three minutes of CPU.
"""

import argparse
import asyncio
import heapq
import itertools
import math
import random
import selectors
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from cot_reward.client import capacity, fleet, flow, outage, retries, sender, wire
from cot_reward.client.server import AttemptError
from cot_reward.records import Comparison

# A request alone: 40 tokens/s, 400 tokens on average, so 10 s.
TOKENS_PER_SECOND_ALONE = 40.0
MEAN_TOKENS = 400
# A rejection takes a round trip.
REJECTION_SECONDS = 0.01
CLIMB = capacity.Climb


class SimulatedLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next event; threads run their work at once."""

    def __init__(self) -> None:
        super().__init__(_JumpingSelector(self))
        self.now = 0.0

    def time(self) -> float:
        return self.now

    def run_in_executor(self, executor: Executor | None, func: Callable, *args: Any) -> Any:
        future = self.create_future()
        future.set_result(func(*args))
        return future


class _JumpingSelector(selectors.SelectSelector):
    def __init__(self, loop: SimulatedLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            raise RuntimeError("nothing is left to happen")
        self._loop.now += timeout
        return super().select(0)


class SimulatedServer:
    """Shares `rate(n)` tokens/s evenly among the n requests in flight; rejects beyond `bound`."""

    def __init__(self, rate: Callable[[int], float], bound: int, mean_tokens: int, seed: int):
        self._rate, self._bound, self._mean = rate, bound, mean_tokens
        self._random = random.Random(seed)
        self._loop = asyncio.get_running_loop()
        self._count = itertools.count()
        # Tokens that a request would have got that was in flight from the start on.
        self._served, self._served_at = 0.0, self._loop.time()
        self._in_flight = 0
        self._ends: list[tuple[float, int, asyncio.Future[None]]] = []
        self._timer: asyncio.TimerHandle | None = None

    async def list_models(self, timeout: float) -> list[str]:
        return ["simulated"]

    async def complete(self, body: bytes, timeout: float) -> Any:
        probe = b'"max_tokens": 1,' in body
        tokens = 1 if probe else int(self._mean * self._random.uniform(0.5, 1.5))
        if self._in_flight >= self._bound:
            await asyncio.sleep(REJECTION_SECONDS)
            raise AttemptError("overloaded", "HTTP 429")
        self._advance()
        done = self._loop.create_future()
        heapq.heappush(self._ends, (self._served + tokens, next(self._count), done))
        self._in_flight += 1
        self._set_timer()
        try:
            async with asyncio.timeout(timeout):
                await done
        except TimeoutError:
            raise AttemptError("timeout", "no answer in time") from None
        finally:
            if done.cancelled():
                self._advance()
                self._in_flight -= 1
                self._set_timer()
        message = {"index": 0, "finish_reason": "stop", "message": {"content": "x"}}
        return {"choices": [message], "usage": {"completion_tokens": tokens}}

    def _advance(self) -> None:
        now = self._loop.time()
        if self._in_flight:
            share = self._rate(self._in_flight) / self._in_flight
            self._served += (now - self._served_at) * share
        self._served_at = now

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._ends and self._ends[0][2].cancelled():
            heapq.heappop(self._ends)
        if self._ends:
            share = self._rate(self._in_flight) / self._in_flight
            wait = max(0.0, self._ends[0][0] - self._served) / share
            self._timer = self._loop.call_later(wait, self._finish)

    def _finish(self) -> None:
        self._advance()
        while self._ends and self._ends[0][0] <= self._served + 1e-6:
            done = heapq.heappop(self._ends)[2]
            if not done.cancelled():
                self._in_flight -= 1
                done.set_result(None)
        self._set_timer()


class SimpleRule:
    """In place of the climb: halve on overload, add an eighth per window without overload."""

    def __init__(self, now: float, say: Callable[[str], None], most: int) -> None:
        self.limit, self._most = 256, most
        self._count = 0
        self.rates: dict[int, float] = {}
        self.settled = self.overloads = 0
        self._changed, self._finished = now, 0

    def in_flight(self, count: int, now: float) -> None:
        self._count = count

    def finished(self, tokens: int, began: float, now: float) -> None:
        self._finished += began >= self._changed
        if self._finished >= self.limit:
            self._set(min(self._most, self.limit + max(1, self.limit // 8)), now)

    def overloaded(self, began: float, now: float) -> None:
        if began >= self._changed:
            self.overloads += 1
            self._set(max(capacity.MIN_CONCURRENCY, self.limit // 2), now)

    def resume(self, now: float) -> None:
        self._finished = 0

    def _set(self, limit: int, now: float) -> None:
        self.limit, self._changed, self._finished = limit, now, 0


class UndrainedClimb(CLIMB):
    """Halves at every overload, also while requests above the last limit are still in flight."""

    def overloaded(self, began: float, now: float) -> None:
        self._in_flight = 0
        super().overloaded(began, now)


class DrainedRule(SimpleRule):
    def overloaded(self, began: float, now: float) -> None:
        if not self.overloads or self._count <= self.limit:
            super().overloaded(began, now)


# name -> (fixed limit, what stands in for the climb)
POLICIES: dict[str, tuple[int | None, Callable[..., Any]]] = {
    "climb": (None, CLIMB),
    "fixed 64": (64, CLIMB),
    "fixed 256": (256, CLIMB),
    "rule": (None, lambda now, say, share: SimpleRule(now, say, 512)),
    "climb, undrained": (None, UndrainedClimb),
    "rule, drained": (None, lambda now, say, share: DrainedRule(now, say, 512)),
}


def saturating(requests: int) -> Callable[[int], float]:
    return lambda n: TOKENS_PER_SECOND_ALONE * min(n, requests)


def thrashing(optimum: int) -> Callable[[int], float]:
    """30% less at twice the optimum, and again at four times."""
    return lambda n: saturating(optimum)(n) * 0.7 ** max(0.0, math.log2(n / optimum))


def gradual(half: int) -> Callable[[int], float]:
    """Each step takes longer the more requests it serves: half of the limit at `half` requests."""
    return lambda n: TOKENS_PER_SECOND_ALONE * n / (1 + n / half)


@dataclass(frozen=True)
class Profile:
    rate: Callable[[int], float]
    bound: int = 10**6
    mean_tokens: int = MEAN_TOKENS


PROFILES = {
    "saturates at 8": Profile(saturating(8)),
    "saturates at 8, answers of 1,200 tokens": Profile(saturating(8), mean_tokens=1200),
    "saturates at 64": Profile(saturating(64)),
    "saturates at 300": Profile(saturating(300)),
    "half of its top rate at 64": Profile(gradual(64)),
    "thrashes beyond 16": Profile(thrashing(16)),
    "thrashes beyond 60": Profile(thrashing(60)),
    "thrashes beyond 200": Profile(thrashing(200)),
    "rejects (429) beyond 8": Profile(saturating(10**6), bound=8),
    "rejects (429) beyond 40": Profile(saturating(10**6), bound=40),
    "rejects (429) beyond 150": Profile(saturating(10**6), bound=150),
}


@dataclass
class Seen:
    tokens: int = 0
    late_tokens: int = 0
    failed: int = 0
    last_limit: int = 0
    overloads: int = 0


def requests() -> Iterator[wire.Request]:
    comparison = Comparison("image_generation", "a", ("a", "b"), 1)
    for number in itertools.count():
        yield wire.Request(comparison, f"{number}", "given", 0, 1, number, "a", ())


async def simulate(profile: Profile, limit: int | None, seconds: float, seed: int) -> Seen:
    loop = asyncio.get_running_loop()
    server: Any = SimulatedServer(profile.rate, profile.bound, profile.mean_tokens, seed)
    # The time-outs of the client's defaults.
    sampling = wire.Sampling("simulated", 1.0, 1.0, 2048, 600, 3600, 5)
    stop, seen = asyncio.Event(), Seen()
    slots = capacity.Capacity(limit)
    watch = outage.Outage(server, sampling, 1800, stop, lambda line: None)
    servers = fleet.Fleet(stop)
    servers.add(fleet.Member(server, sampling, slots, watch))
    loop.call_later(seconds, stop.set)
    batches = flow.send_requests(requests(), sender.FleetSender(servers, lambda path: ()))
    async for batch in batches:
        if stop.is_set():
            break
        for outcome in batch:
            seen.tokens += outcome.completion_tokens
            seen.late_tokens += outcome.completion_tokens * (loop.time() > seconds / 2)
            seen.failed += bool(outcome.reason)
    await batches.aclose()
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    summary = slots.summary()
    seen.last_limit, seen.overloads = summary["limit"], summary.get("overloads", 0)
    return seen


def run(profile: Profile, policy: str, seconds: float, seed: int) -> Seen:
    limit, stand_in = POLICIES[policy]
    random.seed(seed)
    capacity.Climb = stand_in
    loop = SimulatedLoop()
    for module in (capacity, outage, retries):
        module.time = SimpleNamespace(monotonic=loop.time)
    try:
        return loop.run_until_complete(simulate(profile, limit, seconds, seed))
    finally:
        loop.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--requests", type=int, default=10_000, help="length of a run")
    parser.add_argument("--only", default="", help="only servers with this in their name")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(
        f"Runs of {options.requests:,} requests at the server's highest rate. Share of that rate "
        "over the whole run / over its second half (last limit; failed requests)."
    )
    print(f"| server | {' | '.join(POLICIES)} |")
    print("|---|" + "---|" * len(POLICIES))
    for name, profile in PROFILES.items():
        if options.only not in name:
            continue
        most = min(profile.bound, capacity.MAX_CONCURRENCY)
        best = max(profile.rate(n) for n in range(1, most + 1))
        seconds = options.requests * profile.mean_tokens / best
        cells = []
        for policy in POLICIES:
            seen = run(profile, policy, seconds, options.seed)
            whole, late = seen.tokens / seconds / best, 2 * seen.late_tokens / seconds / best
            failed = f"; {seen.failed} failed" if seen.failed else ""
            cells.append(f"{whole:.2f} / {late:.2f} ({seen.last_limit}{failed})")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
