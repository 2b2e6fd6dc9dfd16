"""From asks to outcomes: media read ahead in threads, requests sent, retried, and handed out."""

import asyncio
import os
import random
import time
from collections.abc import AsyncGenerator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

from cot_reward.client import wire
from cot_reward.client.capacity import Capacity
from cot_reward.client.outage import Outage
from cot_reward.client.server import AttemptError, Server
from cot_reward.client.wire import Ask, Outcome, Sampling
from cot_reward.media.paths import MediaError
from cot_reward.records import valid_unicode

# (path below the media root) -> its URL as a JSON string in pieces; blocking, run in a thread.
ReadMedium = Callable[[str], Iterable[bytes]]

# Decoding leaves the interpreter's lock; beyond the cores, some threads may wait for slow disks.
WORKERS = min(32, 2 * (os.cpu_count() or 1))
# A request that was in flight in more outages than these may be their cause.
_OUTAGES = 2
# Requests that are made ready while others are in flight.
_AHEAD = 2 * WORKERS


async def sample(
    asks: Iterable[Ask | None],
    server: Server,
    how: Sampling,
    read_medium: ReadMedium,
    capacity: Capacity,
    outage: Outage,
    stop: asyncio.Event,
) -> AsyncGenerator[list[Outcome], None]:
    """Outcomes as they come, in batches: all that came while the last batch was dealt with.

    `asks` may give None while it looks for the next one. A medium is read shortly before its
    request is sent, so memory is bounded by the concurrency.
    After `stop` is set nothing new is sent, and what is in flight is still handed out; when the
    server is gone for good, nothing more comes. Other asks then have no outcome. Raises ServerError
    when the server cannot be used, and OSError when the media cache cannot be written.
    """
    loop = asyncio.get_running_loop()
    ended: asyncio.Queue[asyncio.Task[Outcome | None]] = asyncio.Queue()
    flying: set[asyncio.Task[Outcome | None]] = set()
    source, exhausted = iter(asks), False

    def over() -> bool:
        return stop.is_set() or bool(outage.gone)

    def ready(ask: Ask) -> bytes:
        return wire.content(ask.prompt, ask.placeholder, map(read_medium, ask.media))

    async def one(ask: Ask) -> Outcome | None:
        try:
            content = await loop.run_in_executor(pool, ready, ask)
        except MediaError as error:
            return Outcome(ask, reason=error.reason, detail=valid_unicode(str(error)))
        await capacity.acquire()
        try:
            return (
                None if over() else await _send(ask, content, server, how, capacity, outage, over)
            )
        finally:
            capacity.release()

    def cancel_all() -> None:
        for task in flying:
            task.cancel()

    outage.when_gone = cancel_all
    with ThreadPoolExecutor(WORKERS) as pool:
        try:
            while True:
                while not exhausted and not over() and len(flying) < capacity.limit + _AHEAD:
                    try:
                        ask = next(source)
                    except StopIteration:
                        exhausted = True
                        break
                    if ask is None:
                        await asyncio.sleep(0)
                    else:
                        task = asyncio.create_task(one(ask))
                        task.add_done_callback(ended.put_nowait)
                        flying.add(task)
                if not flying:
                    return
                # `asyncio.wait` would touch every task in flight each time one ends.
                batch = [await ended.get()]
                while not ended.empty():
                    batch.append(ended.get_nowait())
                flying.difference_update(batch)
                done = [task for task in batch if not task.cancelled()]
                errors = [error for task in done if (error := task.exception())]
                good = (task.result() for task in done if not task.exception())
                if outcomes := [outcome for outcome in good if outcome]:
                    yield outcomes
                # Only now: what has come with it is not to be lost.
                if errors:
                    raise errors[0]
        finally:
            cancel_all()
            await asyncio.gather(*flying, return_exceptions=True)


async def _send(
    ask: Ask,
    content: bytes,
    server: Server,
    how: Sampling,
    capacity: Capacity,
    outage: Outage,
    over: Callable[[], bool],
) -> Outcome | None:
    """Send one request, again after passing faults; None when the run ended before its answer."""
    body = wire.body(content, how, ask.count, ask.seed)
    attempts, tries, retries, outages, spent = 0, 0, 0, 0, 0.0
    while True:
        async with outage.attempt(suspect=outages >= _OUTAGES) as going:
            if not going:
                return None
            began = time.monotonic()
            try:
                answer = await server.complete(body, min(how.timeout, how.deadline - spent))
                outcome = _outcome(answer, ask, how, retries)
                outage.answered(content)
                letters = sum(len(response.text) for response in outcome.responses)
                # Suspects hold their slots while they wait: their times would be too short.
                if outages < _OUTAGES:
                    # A server that does not count tokens: four letters are about one.
                    capacity.finished(outcome.completion_tokens or letters // 4, began)
                return outcome
            except AttemptError as error:
                fault = error
            took = time.monotonic() - began
            was_out = await outage.caused(fault)
        # What was turned away the server never had: only time counts then.
        turned_away = fault.kind in ("overloaded", "unavailable") and (outage.full or not was_out)
        if was_out and not turned_away:
            capacity.resume()
            outages += 1
            if outages <= _OUTAGES or over():
                # The request is not to blame: neither the attempt nor its time counts.
                retries += 1
                continue
            detail = f"the server went out {outages} times while it had this request"
            fault = AttemptError(fault.kind, f"{detail}; {fault.detail}")
        if fault.kind in ("refused", "unknown"):
            return Outcome(ask, reason="refused", detail=fault.detail, retries=retries)
        # Near the deadline an attempt has less time, and its end says nothing of the server.
        slow = fault.kind == "timeout" and took >= min(how.timeout, how.deadline)
        if slow or turned_away:
            capacity.overloaded(began)
        attempts, tries, spent = attempts + (not turned_away), tries + 1, spent + took
        if attempts >= how.max_attempts:
            return Outcome(ask, reason="attempts_used_up", detail=fault.detail, retries=retries)
        # Full jitter: callers that failed together do not come back together.
        wait = max(fault.retry_after, random.uniform(0, min(30.0, 0.5 * 2 ** min(tries, 9))))
        if spent + wait >= how.deadline:
            detail = f"{how.deadline:.3g} s are over, last: {fault.detail}"
            return Outcome(ask, reason="deadline", detail=detail, retries=retries)
        retries += 1
        spent += wait
        until = time.monotonic() + wait
        while not over() and (left := until - time.monotonic()) > 0:
            await asyncio.sleep(min(left, 0.5))


def _outcome(answer: object, ask: Ask, how: Sampling, retries: int) -> Outcome:
    try:
        return wire.outcome(answer, ask, how.model, retries)
    except ValueError as error:
        raise AttemptError("malformed", wire.short(error)) from None
