"""Does the server behind answer? Asked seldom, whatever number of callers want to know."""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack

from cot_reward.client.server import AttemptError, Server, ServerError

# A finding is used for so long, and a server that says nothing for so long is out.
_KEPT_SECONDS, _TIMEOUT_SECONDS = 2.0, 5.0


class Readiness:
    """Use as `async with Readiness(...) as readiness`.

    `model` tells the name that is asked for; None: the only one that is listed.
    Raises ServerError for a key or a proxy that cannot be used.
    """

    def __init__(
        self, base_urls: Sequence[str], model: Callable[[], str | None], api_key: str
    ) -> None:
        self._servers = [Server(url, api_key) for url in base_urls]
        self._model, self._found, self._found_at = model, "not asked yet", float("-inf")
        self._asking = asyncio.Lock()
        self._stack = AsyncExitStack()

    async def fault(self) -> str:
        """Why no server can be used now; "" when one can."""
        async with self._asking:
            if time.monotonic() - self._found_at > _KEPT_SECONDS:
                faults = await asyncio.gather(*map(self._fault_of, self._servers))
                self._found = "" if "" in faults else "; ".join(faults)
                self._found_at = time.monotonic()
            return self._found

    async def _fault_of(self, server: Server) -> str:
        try:
            listed = await server.list_models(_TIMEOUT_SECONDS)
        except (AttemptError, ServerError) as fault:
            return f"{server.base_url}: {fault}"
        model = self._model()
        if model is not None and model not in listed:
            return f"{server.base_url} does not list {model}"
        if model is None and len(listed) > 1:
            return f"{server.base_url} lists several models: choose by --model"
        return "" if listed else f"{server.base_url} lists no model"

    async def __aenter__(self) -> "Readiness":
        for server in self._servers:
            await self._stack.enter_async_context(server)
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._stack.aclose()
