"""One request from its first byte to its answer; every way out of it is counted."""

import asyncio
import hmac
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import Request, Response

from cot_reward.errors import UserError
from cot_reward.service.answers import SERVER_RETRY_SECONDS
from cot_reward.service.bodies import AnyBody, parse
from cot_reward.service.limits import Body, Places, within
from cot_reward.service.metrics import Metrics
from cot_reward.service.refusals import ClosedByClientError, RefusalError, json_response
from cot_reward.service.settings import ServiceSettings

# Seconds that a caller gives its request, from the first byte to the answer.
LIMIT_HEADER = "x-time-limit"
_log = logging.getLogger(__name__)
# Nobody reads this answer; the number is the one that proxies write for it.
_CLIENT_CLOSED = 499


class Handling:
    """The way of requests through the limits of `settings`.

    key: what callers must send; "": nothing
    """

    def __init__(
        self, settings: ServiceSettings, places: Places, metrics: Metrics, key: str
    ) -> None:
        self._settings, self._places, self._metrics = settings, places, metrics
        self._key = key.encode()

    async def answer(
        self,
        request: Request,
        kind: type[AnyBody],
        work: Callable[[AnyBody], Awaitable[dict[str, Any]]],
    ) -> Response:
        """What `work` makes of the request's body, or the error."""
        began, outcome = time.monotonic(), "cancelled"
        body = Body(request.receive, request.headers, self._settings.max_body_bytes)
        try:
            response = json_response(await self._result(request, body, kind, work))
            outcome = "ok"
        except RefusalError as error:
            outcome, response = error.kind, error.response()
        except ClosedByClientError:
            outcome, response = "client_closed", Response(status_code=_CLIENT_CLOSED)
        except UserError as error:
            # The server behind cannot be used as it is; its message says why and what to do.
            found = RefusalError(503, "server_unusable", str(error), SERVER_RETRY_SECONDS)
            outcome, response = found.kind, found.response()
        except Exception as error:
            # To the caller the kind alone: an error's own words may hold another caller's data.
            _log.exception("a request ended in an error of this service")
            message = f"an error of this service: {type(error).__name__}"
            outcome, response = "internal", RefusalError(500, "internal", message).response()
        finally:
            self._metrics.request(request.url.path, outcome, time.monotonic() - began)
        if outcome not in ("ok", "client_closed") and not body.complete:
            if outcome not in ("slow_body", "shutting_down"):
                await body.discard()
            if not body.complete:
                response.headers["Connection"] = "close"
        return response

    def check_key(self, request: Request) -> None:
        """Raises RefusalError unless the caller has the key."""
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        fits = hmac.compare_digest(given.strip().encode(), self._key)
        if self._key and not (fits and scheme.lower() == "bearer"):
            raise RefusalError(
                401, "no_key", "this service wants its key: Authorization: Bearer KEY"
            )

    async def _result(
        self,
        request: Request,
        body: Body,
        kind: type[AnyBody],
        work: Callable[[AnyBody], Awaitable[dict[str, Any]]],
    ) -> dict[str, Any]:
        self.check_key(request)
        _check_type(request)
        seconds = self._seconds(request)
        until = asyncio.get_running_loop().time() + seconds
        with self._places.enter():
            try:
                read = await within(body.read(self._places), until, None, self._places.closed)
            except TimeoutError:
                raise RefusalError(
                    408, "slow_body", f"the body did not come within {seconds:g} s"
                ) from None

            async def in_turn() -> dict[str, Any]:
                async with self._places.work():
                    return await work(await asyncio.to_thread(parse, kind, read))

            try:
                return await within(in_turn(), until, request.receive, self._places.closed)
            except TimeoutError:
                raise RefusalError(
                    504, "time_limit",
                    f"no answer within {seconds:g} s; {LIMIT_HEADER} asks for more, up to "
                    f"{self._settings.max_time_limit:g}",
                ) from None  # fmt: skip
            finally:
                self._places.buffer(-len(read))

    def _seconds(self, request: Request) -> float:
        given = request.headers.get(LIMIT_HEADER)
        most = self._settings.max_time_limit
        try:
            seconds = self._settings.time_limit if given is None else float(given)
        except ValueError:
            seconds = 0.0
        if not 0 < seconds <= most:
            raise RefusalError(
                400, "bad_time_limit", f"{LIMIT_HEADER} is a number of seconds up to {most:g}"
            )
        return seconds


def _check_type(request: Request) -> None:
    """Raises RefusalError for another type than JSON.

    A page in a browser can send other types to this address without being asked.
    """
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if given != "application/json":
        raise RefusalError(415, "not_json", "Content-Type must be application/json")
