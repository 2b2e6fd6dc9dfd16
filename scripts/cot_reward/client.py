"""Bounded asynchronous requests to an OpenAI-compatible server, with retries.

Knows comparisons and responses, nothing of files, flags or judging: `sample` takes what to ask
and hands back each outcome as it comes.
"""

import asyncio
import base64
import random
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from cot_reward.records import Comparison, Order, Response

# The server may be fine in a moment: time-outs, overload, its own faults.
_RETRIED = (408, 429, 500, 502, 503, 504)
# What reading an answer raises when it is not what the protocol says: cut, or of another shape.
_NOT_THE_PROTOCOL = (ValueError, TypeError, AttributeError)


@dataclass(frozen=True)
class Ask:
    """One request: `count` samples of a comparison in one order, the first with index `first`."""

    comparison: Comparison
    order: Order
    first: int
    count: int
    seed: int
    prompt: str


@dataclass(frozen=True)
class Outcome:
    """What became of an Ask: its responses, or the reason why there are none."""

    ask: Ask
    responses: list[Response] = field(default_factory=list)
    reason: str = ""
    detail: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    retries: int = 0


@dataclass(frozen=True)
class Sampling:
    """What the server is asked for; `timeout` in seconds bounds one attempt."""

    model: str
    temperature: float
    top_p: float
    max_tokens: int
    timeout: float
    max_attempts: int


class ServerError(Exception):
    """The server cannot be used at all; the message says why and what to do."""


# (path below the media root) -> (bytes to send, MIME type); blocking, run in a thread.
ReadMedium = Callable[[str], tuple[bytes, str]]


def content(ask: Ask, media: Iterable[tuple[bytes, str]]) -> list[dict[str, Any]]:
    """The user turn: the media in their order, then the prompt, as stage 1 trained on them."""
    parts: list[dict[str, Any]] = []
    for data, mime in media:
        url = f"data:{mime};base64,{base64.b64encode(data).decode()}"
        parts.append({"type": "image_url", "image_url": {"url": url}})
    parts.append({"type": "text", "text": ask.prompt})
    return parts


class Client:
    """One server. Use as `async with Client(...) as client`."""

    def __init__(self, base_url: str, api_key: str) -> None:
        # Imported here: the SDK takes most of a second, which `--help` need not wait for.
        from openai import AsyncOpenAI, DefaultAioHttpClient

        # Retries are ours, so that they are counted and bounded in one place.
        self._api = AsyncOpenAI(
            base_url=base_url, api_key=api_key, max_retries=0, http_client=DefaultAioHttpClient()
        )
        self._base_url = base_url

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._api.close()

    async def model(self, wanted: str | None) -> str:
        """The model's name at the server. Raises ServerError when down, or it has no such model."""
        from openai import APIError

        try:
            listed = [model.id async for model in self._api.with_options(timeout=30).models.list()]
        except (APIError, *_NOT_THE_PROTOCOL) as error:
            raise ServerError(
                f"{self._base_url}: no answer from the server ({_short(error)}); "
                "is it up? `scripts/serve.sh MODEL_DIR` starts one"
            ) from None
        if wanted is None and len(listed) == 1:
            return listed[0]
        if wanted in listed:
            return str(wanted)
        asked = f"has no model '{wanted}'" if wanted else "serves several models: choose by --model"
        raise ServerError(f"{self._base_url} {asked}; it lists: {', '.join(listed) or 'none'}")

    async def ask(self, ask: Ask, parts: list[dict[str, Any]], how: Sampling) -> Outcome:
        """Send one request, again after passing faults. Never raises for what a server does."""
        from openai import APIError, APIStatusError

        detail = ""
        for attempt in range(1, how.max_attempts + 1):
            wait = 0.0
            try:
                answer = await self._api.with_options(timeout=how.timeout).chat.completions.create(
                    model=how.model,
                    messages=[{"role": "user", "content": cast(Any, parts)}],
                    n=ask.count,
                    temperature=how.temperature,
                    top_p=how.top_p,
                    max_tokens=how.max_tokens,
                    seed=ask.seed,
                )
                return Outcome(
                    ask,
                    _responses(answer, ask, how.model),
                    prompt_tokens=(answer.usage and answer.usage.prompt_tokens) or 0,
                    completion_tokens=(answer.usage and answer.usage.completion_tokens) or 0,
                    retries=attempt - 1,
                )
            except APIStatusError as error:
                detail = f"HTTP {error.status_code}: {_short(error)}"
                if error.status_code not in _RETRIED:
                    return Outcome(ask, reason="refused", detail=detail, retries=attempt - 1)
                wait = _retry_after(error.response.headers)
            except (APIError, *_NOT_THE_PROTOCOL) as error:
                detail = f"{type(error).__name__}: {_short(error)}"
            if attempt < how.max_attempts:
                # Full jitter: callers that failed together do not come back together.
                await asyncio.sleep(max(wait, random.uniform(0, min(30.0, 0.5 * 2**attempt))))
        return Outcome(ask, reason="attempts_used_up", detail=detail, retries=how.max_attempts - 1)


def _responses(answer: Any, ask: Ask, model: str) -> list[Response]:
    """The completions in an answer, by index. Raises ValueError unless each came exactly once."""
    choices = sorted(answer.choices or [], key=lambda choice: choice.index)
    if [choice.index for choice in choices] != list(range(ask.count)):
        raise ValueError(f"{len(choices)} choices came for n={ask.count}")
    return [
        Response(
            text=_whole(choice.message.content or ""),
            finish_reason=_whole(choice.finish_reason or ""),
            model=model,
            sample=ask.first + choice.index,
        )
        for choice in choices
    ]


def _whole(text: str) -> str:
    """Text without halves of characters, which JSON can spell but no UTF-8 file can hold."""
    return text.encode("utf-8", "replace").decode()


def _short(error: Exception) -> str:
    """A server's message as one bounded line: it is untrusted text."""
    cause = f" ({error.__cause__})" if error.__cause__ else ""
    return _whole(" ".join(f"{error}{cause}".split())[:300])


def _retry_after(headers: Mapping[str, str]) -> float:
    try:
        return min(60.0, max(0.0, float(headers.get("retry-after", 0))))
    except ValueError:
        return 0.0


async def sample(
    asks: Iterable[Ask],
    client: Client,
    how: Sampling,
    read_medium: ReadMedium,
    media_error: type[Exception],
    concurrency: int,
    stop: asyncio.Event,
) -> AsyncIterator[Outcome]:
    """Outcomes as they come, at most `concurrency` requests in flight.

    A medium is read just before its request is sent, so memory does not grow with the data.
    After `stop` is set nothing new is sent, and what is in flight is still handed out.
    """

    async def one(ask: Ask) -> Outcome:
        try:
            media = [
                await asyncio.to_thread(read_medium, path)
                for path in (*ask.comparison.context, *ask.comparison.presented(ask.order)[0])
            ]
        except media_error as error:
            return Outcome(ask, reason=getattr(error, "reason", "medium"), detail=str(error))
        return await client.ask(ask, content(ask, media), how)

    flying: set[asyncio.Task[Outcome]] = set()
    source = iter(asks)
    exhausted = False
    try:
        while True:
            while not exhausted and not stop.is_set() and len(flying) < concurrency:
                ask = next(source, None)
                if ask is None:
                    exhausted = True
                else:
                    flying.add(asyncio.create_task(one(ask)))
            if not flying:
                return
            done, flying = await asyncio.wait(flying, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                yield task.result()
    finally:
        for task in flying:
            task.cancel()
