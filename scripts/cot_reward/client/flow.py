"""From requests to outcomes: media read ahead in threads, many requests in flight, handed out."""

import asyncio
import os
from collections.abc import AsyncGenerator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from enum import Enum
from typing import Final

from cot_reward.client import wire
from cot_reward.client.capacity import Capacity
from cot_reward.client.outage import Outage
from cot_reward.client.retries import send_with_retries
from cot_reward.client.server import Server
from cot_reward.client.wire import Outcome, Request, Sampling
from cot_reward.media.paths import MediaError
from cot_reward.records import valid_unicode

# (path below the media root) -> its URL as a JSON string in pieces; blocking, run in a thread.
ReadUrl = Callable[[str], Iterable[bytes]]


class Later(Enum):
    """Stands among requests where the next one depends on outcomes that have not come yet."""

    LATER = 0


LATER: Final = Later.LATER

# Decoding releases the interpreter's lock; more threads than cores, for some wait for slow disks.
MEDIA_THREADS = min(32, 2 * (os.cpu_count() or 1))
# Requests that are prepared while others are in flight.
PREPARED_REQUESTS = 2 * MEDIA_THREADS


async def send_requests(
    requests: Iterable[Request | Later | None],
    server: Server,
    sampling: Sampling,
    read_url: ReadUrl,
    capacity: Capacity,
    outage: Outage,
    stop: asyncio.Event,
) -> AsyncGenerator[list[Outcome], None]:
    """Outcomes as they come, in batches: a batch holds all that came since the last was yielded.

    `requests` may give None while it looks for the next request, and LATER when only the outcomes
    of requests in flight can tell what comes next: it is asked again after each batch. Media are
    read shortly before their request is sent, so memory is bounded by the concurrency.
    After `stop` is set nothing new is sent, and the requests in flight are still handed out. When
    the server is gone for good, nothing more comes. The remaining requests then have no outcome.
    Raises ServerError when the server cannot be used, and OSError when the media cache cannot be
    written.
    """
    loop = asyncio.get_running_loop()
    ended: asyncio.Queue[asyncio.Task[list[Outcome]]] = asyncio.Queue()
    running: set[asyncio.Task[list[Outcome]]] = set()
    remaining, exhausted = iter(requests), False

    def over() -> bool:
        return stop.is_set() or bool(outage.gone)

    def prepare(request: Request) -> bytes:
        return wire.content(request.prompt, map(read_url, request.media))

    async def send(request: Request, content: bytes) -> list[Outcome]:
        await capacity.acquire()
        try:
            if over():
                return []
            outcome = await send_with_retries(
                request, content, server, sampling, capacity, outage, over
            )
        finally:
            capacity.release()
        return [outcome] if outcome else []

    async def handle(request: Request) -> list[Outcome]:
        try:
            content = await loop.run_in_executor(pool, prepare, request)
        except MediaError as error:
            return [Outcome(request, reason=error.reason, detail=valid_unicode(str(error)))]
        found = [] if server.ignores_n else await send(request, content)
        if found or not server.ignores_n:
            return found
        single = [
            replace(request, first=request.first + index, count=1, seed=request.seed + index)
            for index in range(request.count)
        ]
        sent = await asyncio.gather(*(send(one, content) for one in single))
        return [outcome for found in sent for outcome in found]

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
                    if request is LATER:
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
                if outcomes := [outcome for result in results for outcome in result]:
                    yield outcomes
                # Raised last: the outcomes of the same batch must not be lost.
                if errors:
                    raise errors[0]
        finally:
            cancel_all()
            await asyncio.gather(*running, return_exceptions=True)
