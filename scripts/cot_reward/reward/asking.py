"""The one place of this room that knows the client: a server is opened, and asked."""

import asyncio
import sys
from dataclasses import replace
from typing import Any

from cot_reward.client import wire
from cot_reward.client.capacity import Capacity
from cot_reward.client.outage import Outage
from cot_reward.client.probe import SMALL_SEEDS, probe
from cot_reward.client.retries import send_with_retries
from cot_reward.client.server import Server, ServerError
from cot_reward.client.wire import Outcome, Request, Sampling
from cot_reward.errors import UserError
from cot_reward.inference.served_model import served_model
from cot_reward.reward.settings import RewardSettings
from cot_reward.tasks.prompts import check_template_of_model

# Why a request has no outcome.
GONE = "server_gone"


def _say(line: str) -> None:
    print(line, file=sys.stderr)


class Asker:
    """The servers of a reward model, from `open` to `close`; it belongs to one event loop.

    `model` and `served` say who answers, once it is open.
    """

    def __init__(self, settings: RewardSettings, template: str, api_key: str) -> None:
        self.model = ""
        self.served: dict[str, Any] = {}
        self._settings, self._template, self._api_key = settings, template, api_key
        self._stop = asyncio.Event()
        self._running: set[asyncio.Task[list[Outcome]]] = set()

    async def open(self) -> None:
        """Connect, and get to know the model. Raises UserError when it cannot be used."""
        settings = self._settings
        server = None
        try:
            server = self._server = Server(settings.base_url[0], self._api_key)
            self.model = await server.resolve_model(settings.model)
            root = server.roots.get(self.model)
            check_template_of_model(root, {settings.task: self._template})
            sampling = self._sampling(self.model)
            found = await probe(server, sampling)
            if "neutral sampling" in found.refused:
                raise UserError(
                    f"{server.base_url} refuses {', '.join(wire.NEUTRAL_SAMPLING)} "
                    f"({found.reason}), so that its own defaults would sample the texts; "
                    'sampling_defaults="server" accepts them'
                )
            if "large seeds" in found.refused:
                sampling = replace(sampling, seeds=SMALL_SEEDS)
            self.served = served_model(root, found)
        except ServerError as error:
            await self._leave(server)
            raise UserError(str(error)) from None
        except BaseException:
            await self._leave(server)
            raise
        self._capacity = Capacity(settings.fixed_concurrency)
        self._outage = Outage(server, sampling, settings.max_pause, self._stop, _say)
        self._outage.when_gone = self._cancel_all
        self._asked_with = sampling

    def _sampling(self, model: str) -> Sampling:
        settings = self._settings
        extra = dict(wire.NEUTRAL_SAMPLING) if settings.sampling_defaults == "neutral" else {}
        if settings.template_kwargs:
            extra["chat_template_kwargs"] = settings.template_kwargs
        return Sampling(
            model, settings.sampled_at, 1.0, settings.max_tokens,
            settings.timeout, settings.deadline, settings.max_attempts, extra,
        )  # fmt: skip

    @property
    def gone(self) -> str:
        """Why the servers were given up; "" while they were not."""
        return self._outage.gone

    @property
    def room(self) -> int:
        """Requests that can be in flight now."""
        return self._capacity.limit

    async def ask(self, request: Request, content: bytes) -> list[Outcome]:
        """The outcomes of a request: one, or one for each of its samples.

        Never empty: a request that the end of the servers left without an answer has the reason
        `server_gone`.
        """
        task = asyncio.create_task(self._outcomes(request, content))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        try:
            found = await task
        except ServerError as error:
            found = [Outcome(request, reason=GONE, detail=str(error))]
        except asyncio.CancelledError:
            # Of the two that may have been cancelled only the request itself was.
            asking = asyncio.current_task()
            if not task.cancelled() or not self._over() or (asking and asking.cancelling()):
                raise
            found = []
        detail = self.gone or "the reward model was closed"
        return found or [Outcome(request, reason=GONE, detail=detail)]

    async def _outcomes(self, request: Request, content: bytes) -> list[Outcome]:
        found = [] if self._server.ignores_n else await self._send(request, content)
        if found or not self._server.ignores_n:
            return found
        single = [
            replace(request, first=request.first + index, count=1, seed=request.seed + index)
            for index in range(request.count)
        ]
        sent = await asyncio.gather(*(self._send(one, content) for one in single))
        return [outcome for found in sent for outcome in found]

    async def _send(self, request: Request, content: bytes) -> list[Outcome]:
        await self._capacity.acquire()
        try:
            if self._over():
                return []
            outcome = await send_with_retries(
                request, content, self._server, self._asked_with, self._capacity, self._outage,
                self._over,
            )  # fmt: skip
        finally:
            self._capacity.release()
        return [outcome] if outcome else []

    def _over(self) -> bool:
        return self._stop.is_set() or bool(self.gone)

    def _cancel_all(self) -> None:
        for task in self._running:
            task.cancel()

    async def close(self) -> None:
        """Give up what is in flight, and the connections."""
        self._stop.set()
        self._cancel_all()
        await asyncio.gather(*self._running, return_exceptions=True)
        await self._leave(self._server)

    async def _leave(self, server: Server | None) -> None:
        if server is not None:
            await server.__aexit__(None, None, None)
