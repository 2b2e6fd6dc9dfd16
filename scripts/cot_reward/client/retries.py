"""One request until its outcome: retried after passing faults, with a wait, up to its bounds."""

import asyncio
import random
import time
from dataclasses import replace

from cot_reward.client import wire
from cot_reward.client.fleet import Fleet, Member
from cot_reward.client.server import AttemptError, ServerError
from cot_reward.client.wire import Outcome, Request, Sampling, SingleChoiceError

# A request that was in flight in more outages than these may be their cause.
MAX_OUTAGES_PER_REQUEST = 2
# What so many servers refuse is refused. One alone may have a shorter context than the others.
MAX_REFUSALS = 3
# The wait before a retry is drawn below a bound that doubles with each try, up to a maximum.
FIRST_BACKOFF_SECONDS, MAX_BACKOFF_SECONDS, MAX_BACKOFF_DOUBLINGS = 0.5, 30.0, 9
# A waiting request notices the end of the run after at most this long.
MAX_SLEEP_SECONDS = 0.5
# About, in English text; for servers that do not count tokens.
LETTERS_PER_TOKEN = 4


async def ask(request: Request, content: bytes, fleet: Fleet) -> list[Outcome]:
    """Send a request until its outcome; none when the run ended before it.

    There are several outcomes where a server ignores `n`: each sample is a request then. Raises
    ServerError when a server cannot be used at all.
    """
    if not fleet.ignores_n:
        outcome = await _Sending(request, content, fleet).outcome()
        if outcome or not fleet.ignores_n:
            return [outcome] if outcome else []
    single = [
        replace(request, first=request.first + index, count=1, seed=request.seed + index)
        for index in range(request.count)
    ]
    sent = await asyncio.gather(*(_Sending(one, content, fleet).outcome() for one in single))
    return [outcome for outcome in sent if outcome]


class _Sending:
    """One request on its way: what has become of it so far, at whatever servers."""

    def __init__(self, request: Request, content: bytes, fleet: Fleet) -> None:
        self._request, self._content, self._fleet = request, content, fleet
        self._attempts = self._tries = self._retries = self._outages = self._singles = 0
        # Seconds that count against the deadline.
        self._spent = 0.0
        # A server gave one sample for several, again.
        self._first_only = False
        # Servers whose fault it met: they are asked again when no other is left.
        self._tried: set[Member] = set()

    async def outcome(self) -> Outcome | None:
        """None when the run ended before it, or a server ignores `n`."""
        before = None
        while member := await self._fleet.acquire(self._request.key, before, self._tried):
            try:
                outcome = await self._at(member)
            finally:
                self._fleet.release(member)
            if outcome or self._first_only or self._fleet.over:
                return outcome
            before = member
        return None

    async def _at(self, member: Member) -> Outcome | None:
        """Send it to this server until it has an outcome; None when another one may be asked."""
        capacity, outage, deadline = member.capacity, member.outage, member.sampling.deadline
        while True:
            # A request that went down with three servers stays: it takes no fourth with it.
            stays = self._outages > MAX_OUTAGES_PER_REQUEST
            async with outage.attempt(self._suspect) as may_send:
                if not may_send:
                    return self._failed(_outages_detail(self._outages)) if stays else None
                began = time.monotonic()
                try:
                    return await self._attempt(member, began)
                except SingleChoiceError as error:
                    self._singles += 1
                    # Once it may be a fault that passes.
                    if self._singles > 1 or self._attempts + 1 >= member.sampling.max_attempts:
                        self._fleet.ignores_n = self._first_only = True
                        return None
                    fault = AttemptError("malformed", wire.one_line(error))
                except AttemptError as error:
                    fault = error
                except ServerError as error:
                    if not self._fleet.has_other(member):
                        raise
                    outage.give_up(str(error))
                    return None
                took = time.monotonic() - began
                was_out = await outage.caused(fault)
            # A rejected request (429, 503) never reached the engine: it costs time, no attempt.
            rejected = fault.kind in ("overloaded", "unavailable") and (outage.full or not was_out)
            if was_out and not rejected:
                self._outages += 1
                if self._outages <= MAX_OUTAGES_PER_REQUEST or self._fleet.over:
                    # The request is not to blame: neither the attempt nor its time counts.
                    self._retries += 1
                    return None
                fault = AttemptError(
                    fault.kind, f"{_outages_detail(self._outages)}; {fault.detail}"
                )
            self._tried.add(member)
            stays = self._outages > MAX_OUTAGES_PER_REQUEST
            others_left = not stays and self._fleet.has_other(member, self._tried)
            if not rejected:
                self._fleet.failed(member)
            elif fault.retry_after:
                self._fleet.rest(member, fault.retry_after)
            if fault.kind in ("refused", "unknown"):
                if others_left and len(self._tried) < MAX_REFUSALS:
                    self._retries += 1
                    return None
                # Not these servers are to blame, but the request.
                for asked in self._tried:
                    asked.is_fine()
                return self._failed(fault.detail, "refused")
            # Near the deadline an attempt has less time, and its end says nothing of the server.
            slow = fault.kind == "timeout" and took >= min(member.sampling.timeout, deadline)
            if slow or rejected:
                capacity.overloaded(began)
            self._attempts += not rejected
            self._tries += 1
            self._spent += took
            if self._attempts >= member.sampling.max_attempts:
                return self._failed(fault.detail)
            # A server's Retry-After holds for that server.
            backoff = _backoff(self._tries)
            wait = backoff if others_left else max(fault.retry_after, backoff)
            if self._spent + wait >= deadline:
                return self._failed(f"{deadline:.3g} s are over, last: {fault.detail}", "deadline")
            self._retries += 1
            self._spent += wait
            until = time.monotonic() + wait
            while not self._fleet.over and (left := until - time.monotonic()) > 0:
                await asyncio.sleep(min(left, MAX_SLEEP_SECONDS))
            if not stays and self._fleet.has_other(member):
                return None

    @property
    def _suspect(self) -> bool:
        return self._outages >= MAX_OUTAGES_PER_REQUEST

    async def _attempt(self, member: Member, began: float) -> Outcome:
        """The answer of this server. Raises AttemptError, SingleChoiceError and ServerError."""
        sampling, request = member.sampling, self._request
        task = request.comparison.task
        body = wire.body(self._content, sampling, request.count, request.seed, task=task)
        seconds = min(sampling.timeout, sampling.deadline - self._spent)
        answer = await member.server.complete(body, seconds)
        outcome = _parse(answer, request, sampling, self._retries)
        member.outage.answered(self._content)
        member.answered(time.monotonic() - began)
        # Suspects hold their slots while they wait: their times would be too short.
        if not self._suspect:
            tokens = outcome.completion_tokens or _estimated_tokens(outcome)
            member.capacity.finished(tokens, began)
        return outcome

    def _failed(self, detail: str, reason: str = "attempts_used_up") -> Outcome:
        return Outcome(self._request, reason=reason, detail=detail, retries=self._retries)


def _outages_detail(outages: int) -> str:
    return f"the server went out {outages} times while it had this request"


def _estimated_tokens(outcome: Outcome) -> int:
    return sum(len(response.text) for response in outcome.responses) // LETTERS_PER_TOKEN


def _backoff(tries: int) -> float:
    """Seconds to wait after so many tries.

    Full jitter: requests that failed together do not come back together.
    """
    bound = FIRST_BACKOFF_SECONDS * 2 ** min(tries, MAX_BACKOFF_DOUBLINGS)
    return random.uniform(0, min(MAX_BACKOFF_SECONDS, bound))


def _parse(answer: object, request: Request, sampling: Sampling, retries: int) -> Outcome:
    try:
        return wire.parse_answer(answer, request, sampling.model, retries)
    except SingleChoiceError:
        raise
    except ValueError as error:
        raise AttemptError("malformed", wire.one_line(error)) from None
