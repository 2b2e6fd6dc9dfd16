"""One OpenAI-compatible server: one attempt at a time, and what its failure means."""

import asyncio
import json
import time
from collections.abc import Mapping
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import Any, Literal

from cot_reward.client import wire
from cot_reward.client.wire import NOT_THE_PROTOCOL, short

# unreachable: no connection, or it broke; timeout: no answer in time; overloaded: 429;
# unavailable: 503; error: 408, other 5xx, an answer that the server broke off; malformed: no answer
# of the protocol; unknown: 404; refused: other 4xx, never retried.
Kind = Literal[
    "unreachable", "timeout", "overloaded", "unavailable", "error", "malformed", "unknown",
    "refused",
]  # fmt: skip
_KINDS: dict[int, Kind] = {404: "unknown", 408: "error", 429: "overloaded", 503: "unavailable"}


class ServerError(Exception):
    """The server cannot be used at all; the message says why and what to do."""


class AttemptError(Exception):
    """An attempt that failed; `retry_after` in seconds is what the server asked for."""

    def __init__(self, kind: Kind, detail: str, retry_after: float = 0.0) -> None:
        super().__init__(detail)
        self.kind, self.detail, self.retry_after = kind, detail, retry_after


class Server:
    """Use as `async with Server(...) as server`."""

    def __init__(self, base_url: str, api_key: str) -> None:
        # Imported here: the SDK takes most of a second, which `--help` need not wait for.
        from openai import AsyncOpenAI, DefaultAioHttpClient

        # Retries are ours, so that they are counted and bounded in one place.
        self._api = AsyncOpenAI(
            base_url=base_url, api_key=api_key, max_retries=0, http_client=DefaultAioHttpClient()
        )
        self.base_url = base_url
        self._api_key = api_key

    async def __aenter__(self) -> "Server":
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._api.close()

    def _said(self, error: BaseException) -> str:
        said = str(error.__cause__ or error)
        # A server may repeat the key that it does not like.
        return short(said.replace(self._api_key, "***") if len(self._api_key) > 4 else said)

    async def models(self, timeout: float) -> list[str]:
        """The names that the server lists. Raises AttemptError."""
        answer = await self._call("GET", timeout)
        try:
            return [short(model["id"]) for model in answer["data"]]
        except NOT_THE_PROTOCOL as error:
            raise AttemptError("malformed", f"its list of models is none: {error!r:.100}") from None

    async def model(self, wanted: str | None) -> str:
        """The model's name at the server. Raises ServerError when down, or it has no such model."""
        try:
            listed = await self.models(30)
        except AttemptError as fault:
            raise ServerError(
                f"{self.base_url}: no answer from the server ({fault.detail}); "
                "is it up? `scripts/serve.sh MODEL_DIR` starts one"
            ) from None
        if wanted is None and len(listed) == 1:
            return listed[0]
        if wanted in listed:
            return str(wanted)
        asked = f"has no model '{wanted}'" if wanted else "serves several models: choose by --model"
        raise ServerError(f"{self.base_url} {asked}; it lists: {', '.join(listed) or 'none'}")

    async def complete(self, body: bytes, timeout: float) -> Any:
        """The answer to a chat completion request.

        Raises AttemptError, and ServerError for a bad key.
        """
        answer = await self._call("POST", timeout, body)
        if isinstance(answer, str):  # sent as JSON under another name
            try:
                answer = json.loads(answer)
            except (ValueError, RecursionError) as error:
                raise AttemptError("malformed", f"not JSON: {error!r:.100}") from None
        if reason := wire.broken_off(answer):
            raise AttemptError("error", f"the server broke off its answer ({short(reason)})")
        return answer

    async def _call(self, method: str, timeout: float, body: bytes = b"") -> Any:
        from openai import APIConnectionError, APIError, APIStatusError

        try:
            # The transport bounds each read, and later; this bounds the whole, also when bytes
            # trickle in.
            async with asyncio.timeout(timeout):
                if method == "GET":
                    return await self._api.get("/models", cast_to=object)
                return await self._api.post(
                    "/chat/completions",
                    cast_to=object,
                    content=body,
                    options={
                        "headers": {"Content-Type": "application/json"},
                        "timeout": timeout + 60,
                    },
                )
        except APIStatusError as error:
            raise self._status(
                error.status_code, self._said(error), error.response.headers
            ) from None
        except TimeoutError:
            raise AttemptError("timeout", f"no answer within {timeout:.3g} s") from None
        except APIConnectionError as error:
            # The transport says time-out here, too, when the server closes the connection.
            raise AttemptError("unreachable", f"no connection: {self._said(error)}") from None
        except (APIError, *NOT_THE_PROTOCOL) as error:
            what = f"{type(error).__name__}: {self._said(error)}"
            raise AttemptError("malformed", what) from None

    def _status(self, status: int, said: str, headers: Mapping[str, str]) -> Exception:
        detail = f"HTTP {status}: {said}"
        if status in (401, 402):
            return ServerError(
                f"{self.base_url}: {detail}; is the key in the environment variable that "
                "--api-key-env names right, and its account in order?"
            )
        by_default: Kind = "error" if status >= 500 else "refused"
        return AttemptError(_KINDS.get(status, by_default), detail, retry_after(headers))


def retry_after(headers: Mapping[str, str]) -> float:
    """Seconds to wait by a Retry-After header, which holds seconds or a date; 0 without one."""
    value = headers.get("retry-after", "")
    with suppress(ValueError):
        return max(0.0, float(value))
    with suppress(ValueError, TypeError, OverflowError):
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    return 0.0
