"""The servers of a run as one: each request gets a slot where it will be answered first.

Every server has its own limit, its own outages and its own share of the work. Requests about one
comparison go to one server, which has their images and the start of their prompt in its cache.
"""

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from cot_reward.client.capacity import Capacity
from cot_reward.client.outage import Outage
from cot_reward.client.server import Server
from cot_reward.client.wire import Sampling

# Of so many comparisons it is known which server was asked last.
KNOWN_COMPARISONS = 2**14
# The weight of the newest request in a server's smoothed time of a request.
NEWEST_WEIGHT = 0.1
# A server that gave so many requests in a row no answer rests: for so many seconds new requests go
# to the others. It may refuse what they answer (a shorter context), and is then the fastest.
MANY_FAILURES, REST_SECONDS = 3, 10.0
# So long at most, whatever wait the server asks for.
MAX_REST_SECONDS = 60.0


@dataclass(eq=False)
class Member:
    """One server of a fleet. `leaving`: it gets no further requests.

    `seconds`: what a request takes there, smoothed; 0 before the first answer. `requests` counts
    the answered ones.
    """

    server: Server
    sampling: Sampling
    capacity: Capacity
    outage: Outage
    leaving: bool = False
    seconds: float = 0.0
    requests: int = 0
    # Attempts without an answer since the last answer.
    failures: int = 0
    rests_until: float = 0.0
    # Set when the server has left the fleet.
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    # Further requests about comparisons that this server was asked about.
    turns: "deque[_Turn]" = field(default_factory=deque)

    @property
    def open(self) -> bool:
        return self.outage.open and not self.leaving

    def answered(self, seconds: float) -> None:
        weight = NEWEST_WEIGHT if self.requests else 1.0
        self.seconds += weight * (seconds - self.seconds)
        self.requests += 1
        self.is_fine()

    def is_fine(self) -> None:
        self.failures, self.rests_until = 0, 0.0

    @property
    def resting(self) -> bool:
        return time.monotonic() < self.rests_until

    def expected_seconds(self) -> tuple[bool, float, float]:
        """What a further request would take, roughly: the fuller the server, the longer.

        Servers that rest come last. The share of the limit that is taken decides between unknown
        servers.
        """
        taken = (self.capacity.in_flight + len(self.turns)) / self.capacity.limit
        return self.resting, self.seconds * (1 + taken), taken

    def summary(self) -> dict[str, Any]:
        return {
            "requests": self.requests,
            "concurrency": self.capacity.summary(),
            "pauses": self.outage.pauses,
            "paused_seconds": round(self.outage.seconds, 2),
        }


class _Turn(NamedTuple):
    """A request that waits for a slot; `slot` is the member, None when the run is over."""

    comparison: str
    slot: asyncio.Future[Member | None]


class Fleet:
    """Members come by `add` and go by `remove`. `stop`: nothing new is sent once it is set.

    `gone` says why there is no server any more; `when_gone` is called then, because requests in
    flight get no answer.
    """

    def __init__(self, stop: asyncio.Event) -> None:
        self.gone = ""
        self.when_gone: Callable[[], object] = lambda: None
        # A server answers a request for several samples with one.
        self.ignores_n = False
        # Whether requests follow those that wait now. At the end, a slow server takes no request
        # that a fast one would have answered earlier.
        self.more_coming = False
        self._stop = stop
        self._members: list[Member] = []
        self._former: list[Member] = []
        # Comparison -> its requests that wait for the first slot anywhere, in their order.
        self._queue: OrderedDict[str, deque[_Turn]] = OrderedDict()
        # Comparison -> the server that it was asked from, the last ones.
        self._asked: OrderedDict[str, Member] = OrderedDict()
        self._out_since: float | None = None
        self._out_seconds = 0.0

    @property
    def over(self) -> bool:
        return self._stop.is_set() or bool(self.gone)

    @property
    def members(self) -> tuple[Member, ...]:
        return tuple(self._members)

    @property
    def limit(self) -> int:
        """Requests that the open servers can have in flight, and those that wait for one server."""
        return sum(m.capacity.limit + len(m.turns) for m in self._members if m.open) or 1

    @property
    def out_seconds(self) -> float:
        """How long no server was open since the fleet was made."""
        now = time.monotonic()
        return self._out_seconds + (now - self._out_since if self._out_since is not None else 0)

    def add(self, member: Member) -> None:
        self._members.append(member)
        member.outage.when_changed = lambda: self._changed(member)
        self._changed(member)

    def remove(self, member: Member, gone: str = "") -> None:
        """Take a server out; `gone` says why it was given up, "" if it only leaves.

        When the last one is given up, so is the run.
        """
        member.leaving = True
        self._members.remove(member)
        self._former.append(member)
        member.gone.set()
        self._changed(member)
        if gone and not self._members:
            self.give_up(gone)

    def give_up(self, why: str) -> None:
        self.gone = why
        self._dispatch()
        self.when_gone()

    def has_other(self, member: Member, tried: Collection[Member] = ()) -> bool:
        """Whether another server is open, which is none of these."""
        return any(
            other.open for other in self._members if other is not member and other not in tried
        )

    def failed(self, member: Member) -> None:
        """A request got no answer from this server, and another one may answer it."""
        member.failures += 1
        if member.failures >= MANY_FAILURES:
            self.rest(member, REST_SECONDS)

    def rest(self, member: Member, seconds: float) -> None:
        """Give this server no new requests for so long, while others work."""
        seconds = min(seconds, MAX_REST_SECONDS)
        member.rests_until = max(member.rests_until, time.monotonic() + seconds)
        # The others may all be busy when it is over.
        asyncio.get_running_loop().call_later(seconds + 0.01, self._dispatch)

    # --- slots ------------------------------------------------------------------------------------

    async def acquire(
        self, comparison: str, before: Member | None = None, tried: Collection[Member] = ()
    ) -> Member | None:
        """The member that a request about this comparison goes to, with a slot taken there.

        None when the run is over. `before`: the member that had the request and did not answer it;
        such a request goes first, and elsewhere if it can: to one that is not among `tried`.
        """
        turn = _Turn(comparison, asyncio.get_running_loop().create_future())
        others = [member for member in self._members if member.open and member is not before]
        others = [member for member in others if member not in tried] or others
        if before and self._asked.get(comparison) is before:
            del self._asked[comparison]
        asked = self._asked.get(comparison)
        if before and others:
            chosen = asked if asked in others else min(others, key=Member.expected_seconds)
            self._remember(comparison, chosen)
            chosen.turns.appendleft(turn)
        elif asked and asked in self._ready():
            asked.turns.append(turn)
        else:
            self._queue.setdefault(comparison, deque()).append(turn)
            if before:
                self._queue.move_to_end(comparison, last=False)
        self._dispatch()
        try:
            return await turn.slot
        except asyncio.CancelledError:
            if turn.slot.done() and not turn.slot.cancelled() and (member := turn.slot.result()):
                self.release(member)
            raise

    def release(self, member: Member) -> None:
        member.capacity.release()
        self._dispatch()

    def _changed(self, member: Member) -> None:
        """A server came, went, is out, or is back."""
        if member.outage.gone and member in self._members:
            self.remove(member, member.outage.gone)
            return
        now = time.monotonic()
        any_open = any(other.open for other in self._members)
        if any_open and self._out_since is not None:
            self._out_seconds += now - self._out_since
            self._out_since = None
        elif not any_open and self._out_since is None:
            self._out_since = now
        if member.open:
            member.capacity.resume()
        elif member.turns:
            # Their comparisons are asked elsewhere. They have waited longest, so they go first.
            while member.turns:
                turn = member.turns.pop()
                self._queue.setdefault(turn.comparison, deque()).appendleft(turn)
                self._queue.move_to_end(turn.comparison, last=False)
        self._dispatch()

    def _dispatch(self) -> None:
        """Give free slots to the requests that wait."""
        if self.over:
            for turns in (*self._queue.values(), *(member.turns for member in self._members)):
                for turn in turns:
                    if not turn.slot.done():
                        turn.slot.set_result(None)
                turns.clear()
            self._queue.clear()
            return
        for member in self._members:
            self._give_own_turns(member)
        while self._queue and (chosen := self._best_free()):
            comparison, turns = self._queue.popitem(last=False)
            self._remember(comparison, chosen)
            chosen.turns.extend(turns)
            self._give_own_turns(chosen)

    def _remember(self, comparison: str, asked: Member) -> None:
        self._asked[comparison] = asked
        self._asked.move_to_end(comparison)
        if len(self._asked) > KNOWN_COMPARISONS:
            self._asked.popitem(last=False)

    def _give_own_turns(self, member: Member) -> None:
        while member.turns and member.open and member.capacity.free:
            turn = member.turns.popleft()
            if not turn.slot.done():
                member.capacity.take()
                turn.slot.set_result(member)

    def _ready(self) -> list[Member]:
        """The servers that get new requests: of the open ones those that rest only if all do."""
        is_open = [member for member in self._members if member.open]
        return [member for member in is_open if not member.resting] or is_open

    def _best_free(self) -> Member | None:
        """The server with a free slot that will answer first; None to wait for another one."""
        free = [member for member in self._ready() if member.capacity.free]
        if not free:
            return None
        best = min(free, key=Member.expected_seconds)
        if self.more_coming:
            return best
        waiting = len(self._queue)
        for other in self._members:
            if other.open and other.seconds and not other.capacity.free:
                # Its last waiting request would be answered after so many seconds.
                drained = other.seconds * (1 + waiting / other.capacity.limit)
                if drained < best.seconds:
                    return None
        return best

    def summary(self) -> dict[str, Any]:
        """For the run's summary: how the servers were asked; see `merged_summary`."""
        servers: dict[str, dict[str, Any]] = {}
        for member in (*self._former, *self._members):
            address, now = member.server.base_url, member.summary()
            servers[address] = _sum(servers[address], now) if address in servers else now
        return _summary(servers, self.ignores_n, self.out_seconds)


def merged_summary(summaries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The summaries of several processes that asked the same servers, as one.

    concurrency: of a single server its own summary, of several their mode and the sum of limits
    paused_seconds: how long no server was open
    servers: by address, with the answered requests
    """
    servers: dict[str, dict[str, Any]] = {}
    for summary in summaries:
        for address, now in summary["servers"].items():
            if address in servers:
                limit = servers[address]["concurrency"]["limit"] + now["concurrency"]["limit"]
                now = _sum(servers[address], now)
                now["concurrency"] = {"mode": now["concurrency"]["mode"], "limit": limit}
            servers[address] = now
    ignores_n = any(summary["one_response_a_request"] for summary in summaries)
    paused = max((summary["paused_seconds"] for summary in summaries), default=0.0)
    return _summary(servers, ignores_n, paused)


def _sum(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    counts = ("requests", "pauses", "paused_seconds")
    return now | {name: round(before[name] + now[name], 2) for name in counts}


def _summary(servers: dict[str, dict[str, Any]], ignores_n: bool, paused: float) -> dict[str, Any]:
    each = [server["concurrency"] for server in servers.values()]
    mode = each[0]["mode"] if each else ""
    return {
        "one_response_a_request": ignores_n,
        "concurrency": each[0] if len(each) == 1 else {
            "mode": mode, "limit": sum(found["limit"] for found in each)
        },
        "pauses": sum(server["pauses"] for server in servers.values()),
        "paused_seconds": round(paused, 2),
        "servers": servers,
    }  # fmt: skip
