"""The one place of this room that knows the client: servers are found, and asked."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from cot_reward.client.fleet import Fleet
from cot_reward.client.options import further_fields
from cot_reward.client.retries import ask
from cot_reward.client.roster import Roster
from cot_reward.client.server import ServerError
from cot_reward.client.wire import Outcome, Request, Sampling
from cot_reward.errors import UserError
from cot_reward.inference.served_model import Acquaintance
from cot_reward.reward.settings import RewardSettings

# Why a request has no outcome.
GONE = "server_gone"
Say = Callable[[str], None]
# What a server's outages are told by, unless a script has a better place.
log: Say = logging.getLogger("cot_reward").warning


class Asker:
    """The servers of a reward model, from `open` to `close`; it belongs to one event loop.

    `model` is the name of the model, `served` tells its weights apart, once it is open.
    """

    def __init__(
        self, settings: RewardSettings, template: str, api_key: str, say: Say = log
    ) -> None:
        self.model = ""
        self._settings, self._template, self._api_key, self._say = settings, template, api_key, say
        self._stop = asyncio.Event()
        self._fleet = Fleet(self._stop)
        self._fleet.when_gone = self._cancel_all
        self._known: Acquaintance | None = None
        self._roster: Roster | None = None
        self._running: set[asyncio.Task[list[Outcome]]] = set()

    async def open(self) -> None:
        """Connect, and get to know the model. Raises UserError when it cannot be used."""
        settings = self._settings
        try:
            self._roster = Roster(
                settings.base_url, None, self._api_key, self._fleet, settings.fixed_concurrency,
                settings.max_pause, self._stop, self._say,
            )  # fmt: skip
            self.model = await self._roster.find_model(settings.model)
            self._known = Acquaintance(self._sampling(), {settings.task: self._template})
            await self._roster.join(self._known.meet)
        except ServerError as error:
            await self.close()
            raise UserError(str(error)) from None
        except BaseException:
            await self.close()
            raise

    def _sampling(self) -> Sampling:
        settings = self._settings
        extra = further_fields(settings.sampling_defaults, settings.template_kwargs)
        return Sampling(
            self.model, settings.temperature_used, 1.0, settings.max_tokens,
            settings.timeout, settings.deadline, settings.max_attempts, extra,
        )  # fmt: skip

    @property
    def served(self) -> dict[str, Any]:
        return self._known.served if self._known else {}

    @property
    def gone(self) -> str:
        """Why the servers were given up; "" while they were not."""
        return self._fleet.gone

    @property
    def room(self) -> int:
        """How many requests can be in flight now."""
        return self._fleet.limit

    def summary(self) -> dict[str, Any]:
        """By server: requests, concurrency, pauses."""
        return self._fleet.summary()

    async def ask(self, request: Request, content: bytes) -> list[Outcome]:
        """The outcomes of a request: one, or one for each of its samples.

        Never empty: a request that the end of the servers left without an answer has the reason
        `server_gone`.
        """
        task = asyncio.create_task(ask(request, content, self._fleet))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        found, detail = [], ""
        try:
            found = await task
        except ServerError as error:
            detail = str(error)
        except asyncio.CancelledError:
            # Either this call was given up by its caller, or the request by `_cancel_all`.
            caller = asyncio.current_task()
            if not self._fleet.over or (caller and caller.cancelling()):
                raise
        detail = detail or self.gone or "the reward model was closed"
        return found or [Outcome(request, reason=GONE, detail=detail)]

    def _cancel_all(self) -> None:
        for task in self._running:
            task.cancel()

    async def close(self) -> None:
        """Give up what is in flight, and the connections."""
        self._stop.set()
        self._cancel_all()
        await asyncio.gather(*self._running, return_exceptions=True)
        if self._roster is not None:
            await self._roster.close()
