"""From requests to outcomes: many requests at the same time, handed out as they come."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable
from enum import Enum
from typing import Any, Final, Protocol

from cot_reward.client.wire import Outcome, Request


class Later(Enum):
    """Stands among requests where the next one depends on outcomes that have not come yet."""

    LATER = 0


LATER: Final = Later.LATER


class Sender(Protocol):
    """Turns requests into outcomes, many at the same time."""

    # Whether further requests follow the given ones (see `Fleet`).
    more_coming: bool

    @property
    def gone(self) -> str:
        """Why there is no server any more; "" while there is."""

    def summary(self) -> dict[str, Any]:
        """For the run's summary: how the servers were asked."""

    @property
    def over(self) -> bool:
        """Nothing new is sent."""

    @property
    def room(self) -> int:
        """How many requests may be prepared or in flight."""

    async def outcomes(self, request: Request) -> list[Outcome]:
        """Of one request; none when the run ended before it.

        Raises ServerError when no server can be used, and OSError when the media cache cannot be
        written.
        """

    def when_gone(self, call: Callable[[], object]) -> None:
        """`call` is called when the last server is given up: requests in flight get no answer."""


async def send_requests(
    requests: Iterable[Request | Later | None], sender: Sender
) -> AsyncGenerator[list[Outcome], None]:
    """Outcomes as they come, in batches: a batch holds all that came since the last was yielded.

    `requests` may give None while it looks for the next request, and LATER when only the outcomes
    of requests in flight can tell what comes next: it is asked again after each batch. Memory is
    bounded by the sender's room. Once the sender is over, nothing new is sent, and the requests in
    flight are still handed out; when the last server is gone, nothing more comes. The remaining
    requests then have no outcome. Raises what the sender raises.
    """
    ended: asyncio.Queue[asyncio.Task[list[Outcome]]] = asyncio.Queue()
    running: set[asyncio.Task[list[Outcome]]] = set()
    remaining, exhausted = iter(requests), False

    def cancel_all() -> None:
        for task in running:
            task.cancel()

    sender.when_gone(cancel_all)
    try:
        while True:
            while not exhausted and not sender.over and len(running) < sender.room:
                try:
                    request = next(remaining)
                except StopIteration:
                    exhausted, sender.more_coming = True, False
                    break
                if request is LATER:
                    sender.more_coming = False
                    break
                if request is None:
                    await asyncio.sleep(0)
                else:
                    sender.more_coming = True
                    task = asyncio.create_task(sender.outcomes(request))
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
