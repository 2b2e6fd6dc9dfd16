"""An answer that is an error: its status, its kind in a word, and a sentence."""

from typing import Any

import orjson
from fastapi import Response

# What a browser must not guess: every answer is data, and a model's texts are never markup.
_HEADERS = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}


class RefusalError(Exception):
    """Why a request has no result.

    kind: a word that callers can compare
    retry_after: seconds after which another try may help; 0: no word about it
    texts: what the model wrote, where no answer can be read in it; a model's words: untrusted
    """

    def __init__(
        self,
        status: int,
        kind: str,
        message: str,
        retry_after: int = 0,
        texts: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message)
        self.status, self.kind, self.message = status, kind, message
        self.retry_after, self.texts = retry_after, texts

    def response(self) -> Response:
        error: dict[str, Any] = {"type": self.kind, "message": self.message}
        if self.texts:
            error["texts"] = self.texts
        headers = {"Retry-After": str(self.retry_after)} if self.retry_after else {}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return json_response({"error": error}, self.status, headers)


class ClosedByClientError(Exception):
    """The caller has gone: nobody reads an answer."""


def json_response(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A JSON answer; NaN becomes null."""
    return Response(
        orjson.dumps(value), status, _HEADERS | (headers or {}), media_type="application/json"
    )
