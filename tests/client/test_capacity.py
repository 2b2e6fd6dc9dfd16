"""Concurrency: the climb against simulated servers, and slots that are handed out in turn."""

import heapq
import random

import pytest
from cot_reward.client.capacity import (
    MAX_CONCURRENCY,
    MIN_CONCURRENCY,
    START_CONCURRENCY,
    Climb,
)
from helpers.client_world import World, unit
from helpers.rows import read_lines

TOKENS = 100


class Simulated:
    """A server in simulated time: how long a request takes depends on how many there are."""

    def __init__(self, seconds, refuse_above=10**6, jitter=0.2):
        self.seconds, self.refuse_above, self.jitter = seconds, refuse_above, jitter
        self.now, self.flying, self.random = 0.0, [], random.Random(0)
        self.lines = []
        self.climb = Climb(0.0, self.lines.append)
        self.count = 0

    def run(self, requests):
        """Keep as many requests in flight as the climb allows until so many have ended."""
        until = self.count + requests
        while self.count < until:
            while len(self.flying) < self.climb.limit:
                self.climb.in_flight(len(self.flying), self.now)
                load = len(self.flying) + 1
                took = self.seconds(load) * self.random.uniform(1 - self.jitter, 1 + self.jitter)
                refused = load > self.refuse_above
                end = self.now + (0.01 if refused else took)
                heapq.heappush(self.flying, (end, self.count, self.now, refused))
                self.count += 1
            end, _, began, refused = heapq.heappop(self.flying)
            self.climb.in_flight(len(self.flying) + 1, end)
            self.now = end
            if refused:
                self.climb.overloaded(began, end)
            else:
                self.climb.finished(TOKENS, began, end)
        return self.climb


def slots(count, seconds=1.0):
    """Up to `count` requests cost nothing extra; beyond, they share."""
    return lambda load: seconds * max(1.0, load / count)


@pytest.mark.parametrize("capacity", [8, 48, 64, 100, 200, 400, 2000])
def test_it_settles_where_more_requests_bring_no_more(capacity):
    climb = Simulated(slots(capacity)).run(12_000)
    # While it tries the next level, it stands on none.
    level = climb.settled or climb.limit // 2
    # At least the capacity, and not many times that, within noise and steps of two.
    assert (
        min(capacity, MAX_CONCURRENCY) * 0.9 <= level <= max(2 * START_CONCURRENCY, 2.7 * capacity)
    )


def test_batching_that_slows_every_request_down_is_no_reason_to_stop():
    # Latency doubles with each fourfold load, and throughput still doubles.
    climb = Simulated(lambda load: load**0.5).run(20_000)
    assert climb.settled == MAX_CONCURRENCY


def test_a_server_that_thrashes_above_its_capacity_is_kept_below():
    climb = Simulated(lambda load: max(1.0, (load / 60) ** 2)).run(12_000)
    assert climb.limit in (32, 64, 128)
    assert climb.settled in (0, 64)


def test_a_capacity_below_the_start_is_found():
    climb = Simulated(lambda load: max(1.0, (load / 20) ** 2)).run(30_000)
    assert climb.limit <= 32


def test_it_says_once_what_it_settled_on():
    simulated = Simulated(slots(100))
    simulated.run(10_000)
    (line,) = simulated.lines
    assert "settled on 128 (" in line
    assert "64: " in line


@pytest.mark.parametrize("bound", [6, 40, 150])
def test_refusals_keep_it_near_the_bound(bound):
    simulated = Simulated(slots(10_000), refuse_above=bound)
    climb = simulated.run(6_000)
    assert MIN_CONCURRENCY <= climb.limit <= 1.5 * bound
    overloads = climb.overloads
    # It comes back to the bound now and then, not all the time.
    simulated.run(6_000)
    assert climb.overloads - overloads < 12_000 / bound


def test_one_burst_of_rejections_halves_the_limit_once():
    climb = Climb(0.0)
    before = climb.limit
    climb.in_flight(before, 0.1)
    climb.overloaded(0.0, 0.1)
    assert climb.limit == before // 2
    # The rejected requests back off in their slots, and are rejected again.
    climb.in_flight(before, 0.6)
    climb.overloaded(0.5, 0.6)
    assert (climb.limit, climb.overloads) == (before // 2, 1)
    climb.in_flight(before // 2, 0.9)
    climb.overloaded(0.8, 0.9)
    assert (climb.limit, climb.overloads) == (before // 4, 2)


def test_one_overload_does_not_hold_it_down():
    simulated = Simulated(slots(400))
    climb = simulated.run(15_000)
    climb.overloaded(simulated.now, simulated.now)
    assert climb.limit <= 256
    simulated.run(15_000)
    assert climb.limit >= 400


def test_a_server_that_becomes_slower_is_looked_at_again():
    simulated = Simulated(slots(200))
    simulated.run(10_000)
    before = simulated.climb.settled
    simulated.seconds = lambda load: max(1.0, (load / 20) ** 2)
    simulated.run(20_000)
    assert any("slower" in line for line in simulated.lines)
    assert simulated.climb.settled < before / 2


def test_no_fault_moves_it_out_of_its_bounds():
    draw = random.Random(0)
    climb = Climb(0.0)
    for now in range(1, 5_000):
        climb.in_flight(draw.randrange(600), now)
        began = now - draw.uniform(0, 50)
        if draw.random() < 0.05:
            climb.overloaded(began, now)
        else:
            climb.finished(draw.randrange(400), began, now)
        assert MIN_CONCURRENCY <= climb.limit <= MAX_CONCURRENCY


def test_auto_fills_a_server_that_works_on_many_at_a_time(tmp_path, server):
    world = World(tmp_path, server, count=300)
    server.configure(latency=0.2, slots=100)
    done = world.run("--num-samples", 1, "--concurrency", "auto")
    assert done.returncode == 0, done.stderr
    found = world.summary["concurrency"]
    assert found["mode"] == "auto"
    assert found["limit"] >= 64
    # With hundreds of answers at a time none is lost and none stands twice.
    assert len(read_lines(world.out / "journal.jsonl")) == 600
    assert len({unit(row) for row in world.judged}) == len(world.judged) == 600
    assert f"(concurrency auto: {found['limit']})" in done.stdout
    # A fixed number is kept to.
    server.configure(latency=0.2)
    assert world.call("--num-samples", 2, "--concurrency", 7, "--limit", 20) == 0
    assert world.summary["concurrency"] == {"mode": "fixed", "limit": 7}
