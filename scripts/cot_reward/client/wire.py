"""What is asked and what comes back: records, and their bytes on the wire."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pybase64

from cot_reward.records import Comparison, Order, Response, valid_unicode

# What a server's text may take in a message: it is untrusted, and goes to logs and files.
_DETAIL = 300
# What reading an answer raises when it is not what the protocol says: cut, or of another shape.
NOT_THE_PROTOCOL = (
    ValueError, TypeError, AttributeError, LookupError, OverflowError, RecursionError,
)  # fmt: skip


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


def inline(data: bytes, mime: str) -> tuple[bytes, ...]:
    """The JSON string of a data URL, in pieces: each copy of a large one takes its time."""
    return b'"data:', mime.encode(), b";base64,", pybase64.b64encode(data), b'"'


def content(prompt: str, placeholder: str, urls: Iterable[Iterable[bytes]]) -> bytes:
    """The user turn as JSON: text and media in the order in which stage 1 trained on them.

    `urls` are JSON strings in pieces, one for each placeholder. Ready bytes spare the SDK from
    walking through, and encoding, hundreds of kilobytes.
    """
    rest = iter(urls)
    parts: list[bytes] = []
    for number, text in enumerate(prompt.split(placeholder)):
        if number:
            parts += [b',{"type":"image_url","image_url":{"url":', *next(rest), b"}}"]
        if text:
            parts += [b',{"type":"text","text":', json.dumps(text).encode(), b"}"]
    return b"".join((b"[", parts[0][1:], *parts[1:], b"]"))


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
    return b"".join((head, b', "messages": [{"role": "user", "content": ', content, b"}]}"))


def broken_off(answer: Any) -> str:
    """The finish reason of an answer that the server itself broke off, "" for any other.

    vLLM ends all that it has in hand so, with status 200, when it shuts down or is put to sleep.
    """
    try:
        reasons = [choice.get("finish_reason") for choice in answer["choices"]]
    except NOT_THE_PROTOCOL:
        return ""
    return next((reason for reason in reasons if reason in ("abort", "error")), "")


def outcome(answer: Any, ask: Ask, model: str, retries: int) -> Outcome:
    """The outcome in a server's answer. Raises ValueError unless every sample came, and once."""
    try:
        choices = sorted(answer["choices"], key=lambda choice: choice["index"])
        texts = [choice["message"].get("content") or "" for choice in choices]
        reasons = [choice.get("finish_reason") or "" for choice in choices]
        usage = answer.get("usage") or {}
        counts = [int(usage.get(f"{kind}_tokens") or 0) for kind in ("prompt", "completion")]
        asked, said = (min(max(count, 0), 2**53) for count in counts)
        if not all(isinstance(text, str) for text in (*texts, *reasons)):
            raise TypeError("a text is no string")
    except NOT_THE_PROTOCOL as error:
        raise ValueError(f"not a chat completion: {error!r}") from None
    if [choice["index"] for choice in choices] != list(range(ask.count)):
        raise ValueError(f"{len(choices)} choices came for n={ask.count}")
    responses = [
        Response(valid_unicode(text), valid_unicode(reason), model, ask.first + index)
        for index, (text, reason) in enumerate(zip(texts, reasons, strict=True))
    ]
    return Outcome(ask, responses, prompt_tokens=asked, completion_tokens=said, retries=retries)


def short(error: object) -> str:
    """A server's message as one bounded line, without what would steer a terminal."""
    line = " ".join(str(error).split())[:_DETAIL]
    return valid_unicode("".join(letter if letter.isprintable() else "?" for letter in line))
