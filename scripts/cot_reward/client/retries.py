"""One request until its outcome: retried after passing faults, with a wait, up to its bounds."""

import asyncio
import random
import time
from collections.abc import Callable

from cot_reward.client import wire
from cot_reward.client.capacity import Capacity
from cot_reward.client.outage import Outage
from cot_reward.client.server import AttemptError, Server
from cot_reward.client.wire import Outcome, Request, Sampling, SingleChoiceError

# A request that was in flight in more outages than these may be their cause.
MAX_OUTAGES_PER_REQUEST = 2
# The wait before a retry is drawn below a bound that doubles with each try, up to a maximum.
FIRST_BACKOFF_SECONDS, MAX_BACKOFF_SECONDS, MAX_BACKOFF_DOUBLINGS = 0.5, 30.0, 9
# A waiting request notices the end of the run after at most this long.
MAX_SLEEP_SECONDS = 0.5
# About, in English text; for servers that do not count tokens.
LETTERS_PER_TOKEN = 4


async def send_with_retries(
    request: Request,
    content: bytes,
    server: Server,
    sampling: Sampling,
    capacity: Capacity,
    outage: Outage,
    over: Callable[[], bool],
) -> Outcome | None:
    """Send one request, again after passing faults; None when the run ended before its answer.

    None, too, when its answers show that the server ignores `n`: `server` then says so.
    """
    body = wire.body(content, sampling, request.count, request.seed, task=request.comparison.task)
    attempts, tries, retries, outages, singles, spent = 0, 0, 0, 0, 0, 0.0
    while True:
        suspect = outages >= MAX_OUTAGES_PER_REQUEST
        async with outage.attempt(suspect) as may_send:
            if not may_send:
                return None
            began = time.monotonic()
            try:
                answer = await server.complete(
                    body, min(sampling.timeout, sampling.deadline - spent)
                )
                outcome = _parse(answer, request, sampling, retries)
                outage.answered(content)
                # Suspects hold their slots while they wait: their times would be too short.
                if not suspect:
                    capacity.finished(
                        outcome.completion_tokens or _estimated_tokens(outcome), began
                    )
                return outcome
            except SingleChoiceError as error:
                singles += 1
                # Once it may be a fault that passes.
                if singles > 1 or attempts + 1 >= sampling.max_attempts:
                    server.ignores_n = True
                    return None
                fault = AttemptError("malformed", wire.one_line(error))
            except AttemptError as error:
                fault = error
            took = time.monotonic() - began
            was_out = await outage.caused(fault)
        # A rejected request (429, 503) never reached the engine, so it costs time, not an attempt.
        rejected = fault.kind in ("overloaded", "unavailable") and (outage.full or not was_out)
        if was_out and not rejected:
            capacity.resume()
            outages += 1
            if outages <= MAX_OUTAGES_PER_REQUEST or over():
                # The request is not to blame: neither the attempt nor its time counts.
                retries += 1
                continue
            detail = f"the server went out {outages} times while it had this request"
            fault = AttemptError(fault.kind, f"{detail}; {fault.detail}")
        if fault.kind in ("refused", "unknown"):
            return Outcome(request, reason="refused", detail=fault.detail, retries=retries)
        # Near the deadline an attempt has less time, and its time-out says nothing of the server.
        slow = fault.kind == "timeout" and took >= min(sampling.timeout, sampling.deadline)
        if slow or rejected:
            capacity.overloaded(began)
        attempts, tries, spent = attempts + (not rejected), tries + 1, spent + took
        if attempts >= sampling.max_attempts:
            return Outcome(request, reason="attempts_used_up", detail=fault.detail, retries=retries)
        wait = max(fault.retry_after, _backoff(tries))
        if spent + wait >= sampling.deadline:
            detail = f"{sampling.deadline:.3g} s are over, last: {fault.detail}"
            return Outcome(request, reason="deadline", detail=detail, retries=retries)
        retries += 1
        spent += wait
        until = time.monotonic() + wait
        while not over() and (left := until - time.monotonic()) > 0:
            await asyncio.sleep(min(left, MAX_SLEEP_SECONDS))


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
