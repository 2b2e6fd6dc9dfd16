"""Requests to a fleet, with their media: read ahead in threads while others are in flight."""

import asyncio
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from cot_reward.client import wire
from cot_reward.client.fleet import Fleet
from cot_reward.client.retries import ask
from cot_reward.client.wire import Outcome, Request
from cot_reward.media.paths import MediaError
from cot_reward.records import valid_unicode

# (path below the media root) -> its URL as a JSON string in pieces; blocking, run in a thread.
ReadUrl = Callable[[str], Iterable[bytes]]

# Decoding releases the interpreter's lock; more threads than cores, for some wait for slow disks.
MEDIA_THREADS = min(32, 2 * (os.cpu_count() or 1))
# Requests that are prepared while others are in flight.
PREPARED_REQUESTS = 2 * MEDIA_THREADS


class FleetSender:
    """Reads media shortly before their request is sent to a fleet.

    Use as `with FleetSender(...) as sender`.
    """

    def __init__(self, fleet: Fleet, read_url: ReadUrl) -> None:
        self._fleet, self._read_url = fleet, read_url
        self._pool = ThreadPoolExecutor(MEDIA_THREADS)

    @property
    def more_coming(self) -> bool:
        return self._fleet.more_coming

    @more_coming.setter
    def more_coming(self, more: bool) -> None:
        self._fleet.more_coming = more

    @property
    def over(self) -> bool:
        return self._fleet.over

    @property
    def gone(self) -> str:
        return self._fleet.gone

    def summary(self) -> dict[str, Any]:
        return self._fleet.summary()

    @property
    def room(self) -> int:
        return self._fleet.limit + PREPARED_REQUESTS

    async def outcomes(self, request: Request) -> list[Outcome]:
        try:
            content = await asyncio.get_running_loop().run_in_executor(
                self._pool, self._content, request
            )
        except MediaError as error:
            return [Outcome(request, reason=error.reason, detail=valid_unicode(str(error)))]
        return await ask(request, content, self._fleet)

    def _content(self, request: Request) -> bytes:
        return wire.content(request.prompt, map(self._read_url, request.media))

    def when_gone(self, call: Callable[[], object]) -> None:
        self._fleet.when_gone = call

    def __enter__(self) -> "FleetSender":
        return self

    def __exit__(self, *exception: object) -> None:
        self._pool.shutdown()
