"""One OpenAI-compatible server: one attempt at a time, and what its failure means."""

import asyncio
import json
import time
from collections.abc import Mapping
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import Any, Literal

from cot_reward.client import address, wire
from cot_reward.client.wire import PROTOCOL_ERRORS, one_line

# unreachable: no connection, or it broke; timeout: no answer in time; overloaded: 429;
# unavailable: 503; error: 408, other 5xx, an answer that the server broke off; malformed: an answer
# that breaks the protocol; unknown: 404; other_model: the one that is asked for is not among the
# models that it lists; refused: other 4xx, never retried.
FaultKind = Literal[
    "unreachable", "timeout", "overloaded", "unavailable", "error", "malformed", "unknown",
    "other_model", "refused",
]  # fmt: skip
_KIND_BY_STATUS: dict[int, FaultKind] = {
    404: "unknown", 408: "error", 429: "overloaded", 503: "unavailable",
}  # fmt: skip

# For the first question to the server, which decides whether the run begins.
START_TIMEOUT_SECONDS = 30.0
# What the transport gets beyond our own time-out, so that ours ends the attempt.
TRANSPORT_MARGIN_SECONDS = 60.0
# A shorter key is no secret, and replacing it would damage messages.
MIN_SECRET_CHARACTERS = 5


class ServerError(Exception):
    """The server cannot be used at all; the message says why and what to do.

    `may_pass`: it may be usable later (it is not up yet, or overloaded).
    """

    def __init__(self, message: str, may_pass: bool = False) -> None:
        super().__init__(message)
        self.may_pass = may_pass


class AttemptError(Exception):
    """An attempt that failed; `retry_after` is the wait in seconds that the server asked for."""

    def __init__(self, kind: FaultKind, detail: str, retry_after: float = 0.0) -> None:
        super().__init__(detail)
        self.kind, self.detail, self.retry_after = kind, detail, retry_after


class Server:
    """Use as `async with Server(...) as server`."""

    def __init__(self, base_url: str, api_key: str) -> None:
        """Raises ServerError for an address, a key or a proxy that cannot be used."""
        # Imported here: the SDK takes most of a second, which `--help` need not wait for.
        from openai import AsyncOpenAI, DefaultAioHttpClient

        try:
            address.check_address(base_url)
        except ValueError as error:
            raise ServerError(str(error)) from None
        self.base_url = address.api_address(base_url)
        # A key out of a file ends in a line break. vLLM without --api-key accepts any key; the SDK
        # refuses an empty one.
        self._api_key = api_key.strip() or "none"
        if not (self._api_key.isascii() and self._api_key.isprintable()):
            raise ServerError(
                "the API key (OPENAI_API_KEY, or the variable that --api-key-env names) holds a "
                "line break or letters that no key has; set it again"
            )
        self._proxy = address.proxy_of(self.base_url)
        try:
            # Without a proxy for this address, the environment must not bring one in.
            http_client = DefaultAioHttpClient(trust_env=bool(self._proxy))
        except (ValueError, ImportError) as error:
            raise ServerError(
                f"{self.base_url}: the proxy {self._proxy} cannot be used ({error}); unset "
                "all_proxy, http_proxy and https_proxy, or name an http:// proxy there"
            ) from None
        # Retries are ours, so that they are counted and bounded in one place.
        self._api = AsyncOpenAI(
            base_url=self.base_url, api_key=self._api_key, max_retries=0, http_client=http_client
        )
        # Model -> the folder that it was loaded from, where the server says it.
        self.roots: dict[str, str] = {}

    async def __aenter__(self) -> "Server":
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._api.close()

    def _message(self, error: BaseException) -> str:
        message = str(error.__cause__ or error)
        if len(self._api_key) >= MIN_SECRET_CHARACTERS:
            # A server may repeat the key that it refuses.
            message = message.replace(self._api_key, "***")
        return one_line(message)

    async def list_models(self, timeout: float) -> list[str]:
        """The names that the server lists. Raises AttemptError."""
        answer = await self._call("GET", timeout)
        try:
            self.roots = {
                one_line(model["id"]): model["root"]
                for model in answer["data"]
                if isinstance(model.get("root"), str)
            }
            return [one_line(model["id"]) for model in answer["data"]]
        except PROTOCOL_ERRORS as error:
            raise AttemptError("malformed", f"not a list of models: {error!r:.100}") from None

    async def resolve_model(self, wanted: str | None) -> str:
        """The model's name at the server; None wants the only model that it lists.

        Raises ServerError when the server does not answer or does not have the model.
        """
        try:
            listed = await self.list_models(START_TIMEOUT_SECONDS)
        except AttemptError as fault:
            raise ServerError(
                f"{self.base_url}: {self._explained(fault)}",
                may_pass=fault.kind not in ("unknown", "refused", "malformed"),
            ) from None
        if wanted is None and len(listed) == 1:
            return listed[0]
        if wanted in listed:
            return str(wanted)
        problem = (
            f"has no model '{wanted}'" if wanted else "serves several models: choose by --model"
        )
        raise ServerError(f"{self.base_url} {problem}; it lists: {', '.join(listed) or 'none'}")

    def _explained(self, fault: AttemptError) -> str:
        """Why the first question found no usable answer, and what to do."""
        through = f" through the proxy {self._proxy}" if self._proxy else ""
        if fault.kind in ("unreachable", "timeout"):
            proxy = "; does the proxy know it? no_proxy names exceptions" if self._proxy else ""
            return (
                f"no answer from the server{through} ({fault.detail}); is it up? "
                f"`scripts/serve.sh MODEL_DIR` starts one{proxy}"
            )
        if fault.detail.startswith("HTTP 403"):
            return (
                f"the server{through} refuses access ({fault.detail}); may the API key "
                "(OPENAI_API_KEY, or the variable that --api-key-env names) use it?"
            )
        if fault.kind in ("unknown", "refused", "malformed"):
            return (
                f"what answers{through} is no OpenAI-compatible server ({fault.detail}); is "
                "--base-url right? It ends in /v1 as a rule"
            )
        return f"the server{through} is in trouble ({fault.detail}); see its log"

    async def complete(self, body: bytes, timeout: float) -> Any:
        """The answer to a chat completion request.

        Raises AttemptError, and ServerError for a bad key.
        """
        answer = await self._call("POST", timeout, body)
        if isinstance(answer, str):
            # The SDK reads JSON only under its own content type.
            try:
                answer = json.loads(answer)
            except (ValueError, RecursionError) as error:
                raise AttemptError("malformed", f"not JSON: {error!r:.100}") from None
        if reason := wire.abort_reason(answer):
            raise AttemptError("error", f"the server broke off its answer ({one_line(reason)})")
        return answer

    async def _call(self, method: str, timeout: float, body: bytes = b"") -> Any:
        from openai import APIConnectionError, APIError, APIStatusError

        try:
            # The transport bounds each read; this bounds the attempt, also when bytes trickle in.
            async with asyncio.timeout(timeout):
                if method == "GET":
                    return await self._api.get("/models", cast_to=object)
                return await self._api.post(
                    "/chat/completions",
                    cast_to=object,
                    content=body,
                    options={
                        "headers": {"Content-Type": "application/json"},
                        "timeout": timeout + TRANSPORT_MARGIN_SECONDS,
                    },
                )
        except APIStatusError as error:
            raise self._status_error(
                error.status_code, self._message(error), error.response.headers
            ) from None
        except TimeoutError:
            raise AttemptError("timeout", f"no answer within {timeout:.3g} s") from None
        except APIConnectionError as error:
            # The transport reports a closed connection as a time-out, too.
            raise AttemptError("unreachable", f"no connection: {self._message(error)}") from None
        except (APIError, *PROTOCOL_ERRORS) as error:
            detail = f"{type(error).__name__}: {self._message(error)}"
            raise AttemptError("malformed", detail) from None

    def _status_error(self, status: int, message: str, headers: Mapping[str, str]) -> Exception:
        detail = f"HTTP {status}: {message}"
        if status in (401, 402):
            return ServerError(
                f"{self.base_url}: {detail}; is the API key (OPENAI_API_KEY, or the variable that "
                "--api-key-env names) right, and its account in order?"
            )
        default: FaultKind = "error" if status >= 500 else "refused"
        return AttemptError(_KIND_BY_STATUS.get(status, default), detail, retry_after(headers))


def retry_after(headers: Mapping[str, str]) -> float:
    """Seconds to wait by a Retry-After header, which holds seconds or a date; 0 without one."""
    value = headers.get("retry-after", "")
    with suppress(ValueError):
        return max(0.0, float(value))
    with suppress(ValueError, TypeError, OverflowError):
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    return 0.0
