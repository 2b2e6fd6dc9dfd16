"""From requests to outcomes: media read ahead in threads, requests sent, retried, handed out."""

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
from cot_reward.client.wire import Outcome, Request, Sampling
from cot_reward.media.paths import MediaError
from cot_reward.records import valid_unicode

# (path below the media root) -> its URL as a JSON string in pieces; blocking, run in a thread.
ReadUrl = Callable[[str], Iterable[bytes]]

# Decoding releases the interpreter's lock; more threads than cores, for some wait for slow disks.
MEDIA_THREADS = min(32, 2 * (os.cpu_count() or 1))
# Requests that are prepared while others are in flight.
PREPARED_REQUESTS = 2 * MEDIA_THREADS
# A request that was in flight in more outages than these may be their cause.
MAX_OUTAGES_PER_REQUEST = 2
# The wait before a retry is drawn below a bound that doubles with each try, up to a maximum.
FIRST_BACKOFF_SECONDS, MAX_BACKOFF_SECONDS, MAX_BACKOFF_DOUBLINGS = 0.5, 30.0, 9
# A waiting request notices the end of the run after at most this long.
MAX_SLEEP_SECONDS = 0.5
# About, in English text; for servers that do not count tokens.
LETTERS_PER_TOKEN = 4


async def send_requests(
    requests: Iterable[Request | None],
    server: Server,
    sampling: Sampling,
    read_url: ReadUrl,
    capacity: Capacity,
    outage: Outage,
    stop: asyncio.Event,
) -> AsyncGenerator[list[Outcome], None]:
    """Outcomes as they come, in batches: a batch holds all that came since the last was yielded.

    `requests` may give None while it looks for the next request. Media are read shortly before
    their request is sent, so memory is bounded by the concurrency.
    After `stop` is set nothing new is sent, and the requests in flight are still handed out. When
    the server is gone for good, nothing more comes. The remaining requests then have no outcome.
    Raises ServerError when the server cannot be used, and OSError when the media cache cannot be
    written.
    """
    loop = asyncio.get_running_loop()
    ended: asyncio.Queue[asyncio.Task[Outcome | None]] = asyncio.Queue()
    running: set[asyncio.Task[Outcome | None]] = set()
    remaining, exhausted = iter(requests), False

    def over() -> bool:
        return stop.is_set() or bool(outage.gone)

    def prepare(request: Request) -> bytes:
        return wire.content(request.prompt, request.placeholder, map(read_url, request.media))

    async def handle(request: Request) -> Outcome | None:
        try:
            content = await loop.run_in_executor(pool, prepare, request)
        except MediaError as error:
            return Outcome(request, reason=error.reason, detail=valid_unicode(str(error)))
        await capacity.acquire()
        try:
            if over():
                return None
            return await _send(request, content, server, sampling, capacity, outage, over)
        finally:
            capacity.release()

    def cancel_all() -> None:
        for task in running:
            task.cancel()

    outage.when_gone = cancel_all
    with ThreadPoolExecutor(MEDIA_THREADS) as pool:
        try:
            while True:
                while (
                    not exhausted
                    and not over()
                    and len(running) < capacity.limit + PREPARED_REQUESTS
                ):
                    try:
                        request = next(remaining)
                    except StopIteration:
                        exhausted = True
                        break
                    if request is None:
                        await asyncio.sleep(0)
                    else:
                        task = asyncio.create_task(handle(request))
                        task.add_done_callback(ended.put_nowait)
                        running.add(task)
                if not running:
                    return
                # `asyncio.wait` would touch every running task each time one ends.
                batch = [await ended.get()]
                while not ended.empty():
                    batch.append(ended.get_nowait())
                running.difference_update(batch)
                done = [task for task in batch if not task.cancelled()]
                errors = [error for task in done if (error := task.exception())]
                results = (task.result() for task in done if not task.exception())
                if outcomes := [outcome for outcome in results if outcome]:
                    yield outcomes
                # Raised last: the outcomes of the same batch must not be lost.
                if errors:
                    raise errors[0]
        finally:
            cancel_all()
            await asyncio.gather(*running, return_exceptions=True)


async def _send(
    request: Request,
    content: bytes,
    server: Server,
    sampling: Sampling,
    capacity: Capacity,
    outage: Outage,
    over: Callable[[], bool],
) -> Outcome | None:
    """Send one request, again after passing faults; None when the run ended before its answer."""
    body = wire.body(content, sampling, request.count, request.seed)
    attempts, tries, retries, outages, spent = 0, 0, 0, 0, 0.0
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
    except ValueError as error:
        raise AttemptError("malformed", wire.one_line(error)) from None
