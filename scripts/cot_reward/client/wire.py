"""What is asked and what comes back: records, and their bytes on the wire."""

import base64
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from cot_reward.records import Comparison, Order, Response

# What a server's text may take in a message: it is untrusted, and goes to logs and files.
_DETAIL = 300


@dataclass(frozen=True)
class Ask:
    """One request: `count` samples of a comparison in one order, the first with index `first`.

    `prompt` has one `placeholder` for each of the `media`, paths below the media root.
    """

    comparison: Comparison
    key: str
    order: Order
    first: int
    count: int
    seed: int
    prompt: str
    placeholder: str
    media: tuple[str, ...]


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
    """What the server is asked for.

    `timeout` bounds one attempt, `deadline` all attempts of a request with the waits between them,
    both in seconds; time in which the server was out does not count.
    """

    model: str
    temperature: float
    top_p: float
    max_tokens: int
    timeout: float
    deadline: float
    max_attempts: int


def inline(data: bytes, mime: str) -> bytes:
    """The JSON string of a data URL."""
    return b'"data:%s;base64,%s"' % (mime.encode(), base64.b64encode(data))


def content(prompt: str, placeholder: str, urls: Iterable[bytes]) -> bytes:
    """The user turn as JSON: text and media in the order in which stage 1 trained on them.

    `urls` are JSON strings, one for each placeholder. Ready bytes spare the SDK from walking
    through, and encoding, hundreds of kilobytes.
    """
    rest = iter(urls)
    parts = []
    for number, text in enumerate(prompt.split(placeholder)):
        if number:
            parts.append(b'{"type":"image_url","image_url":{"url":%s}}' % next(rest))
        if text:
            parts.append(b'{"type":"text","text":%s}' % json.dumps(text).encode())
    return b"[%s]" % b",".join(parts)


def body(content: bytes, how: Sampling, count: int, seed: int, max_tokens: int = 0) -> bytes:
    """A chat completion request for `count` samples (`max_tokens`: if not those of `how`)."""
    settings = {
        "model": how.model,
        "n": count,
        "temperature": how.temperature,
        "top_p": how.top_p,
        "max_tokens": max_tokens or how.max_tokens,
        "seed": seed,
    }
    head = json.dumps(settings)[:-1].encode()
    return b'%s, "messages": [{"role": "user", "content": %s}]}' % (head, content)


def outcome(answer: Any, ask: Ask, model: str, retries: int) -> Outcome:
    """The outcome in a server's answer. Raises ValueError unless every sample came, and once."""
    if isinstance(answer, str):  # sent as JSON under another name
        answer = json.loads(answer)
    try:
        choices = sorted(answer["choices"], key=lambda choice: choice["index"])
        texts = [choice["message"].get("content") or "" for choice in choices]
        reasons = [choice.get("finish_reason") or "" for choice in choices]
        usage = answer.get("usage") or {}
        asked, said = (int(usage.get(f"{kind}_tokens") or 0) for kind in ("prompt", "completion"))
        if not all(isinstance(text, str) for text in (*texts, *reasons)):
            raise TypeError("a text is no string")
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a chat completion: {error!r}") from None
    if [choice["index"] for choice in choices] != list(range(ask.count)):
        raise ValueError(f"{len(choices)} choices came for n={ask.count}")
    responses = [
        Response(whole(text), whole(reason), model, ask.first + index)
        for index, (text, reason) in enumerate(zip(texts, reasons, strict=True))
    ]
    return Outcome(ask, responses, prompt_tokens=asked, completion_tokens=said, retries=retries)


def whole(text: str) -> str:
    """Text without halves of characters, which JSON can spell but no UTF-8 file can hold."""
    return text.encode("utf-8", "replace").decode()


def short(error: object) -> str:
    """A server's message as one bounded line."""
    return whole(" ".join(str(error).split())[:_DETAIL])
