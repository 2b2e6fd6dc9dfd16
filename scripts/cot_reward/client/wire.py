"""Requests and their outcomes: records, and the bytes that travel to and from the server."""

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from cot_reward.client.answer_probability import probability_of_first
from cot_reward.records import (
    PLACEHOLDERS,
    Comparison,
    Order,
    Response,
    Restored,
    valid_unicode,
)

# A server's text is untrusted, and goes to logs and files.
MAX_MESSAGE_CHARACTERS = 300
# Token counts of a server stay exact as JSON doubles.
MAX_TOKEN_COUNT = 2**53
# What reading an answer raises when it breaks the protocol: it is cut, or has another shape.
PROTOCOL_ERRORS = (
    ValueError, TypeError, AttributeError, LookupError, OverflowError, RecursionError,
)  # fmt: skip
# A parameter that a request leaves out has the value of the served folder's generation_config.json,
# and Qwen's files have top_k 1 or a repetition penalty: four samples would be one text, and the
# texts would not be the model's own. vLLM and SGLang understand these values.
NEUTRAL_SAMPLING: dict[str, Any] = {
    "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0,
    "presence_penalty": 0.0, "frequency_penalty": 0.0,
}  # fmt: skip
# Where a server with a reasoning parser puts what stood inside <think> (vLLM's word, then others').
_REASONING_FIELDS = ("reasoning", "reasoning_content")
# What a chat template writes that opens the block itself, as Qwen3.5's and DeepSeek-R1's do.
_TEMPLATE_OPENING = "<think>\n"


@dataclass(frozen=True)
class Request:
    """One request: `count` samples of a comparison in one order, the first with index `first`.

    `prompt` has one placeholder for each of the `media`, paths of images below the media root.
    """

    comparison: Comparison
    key: str
    order: Order
    first: int
    count: int
    seed: int
    prompt: str
    media: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """What became of a request: its responses, or the reason why there are none."""

    request: Request
    responses: list[Response] = field(default_factory=list)
    reason: str = ""
    detail: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    retries: int = 0


@dataclass(frozen=True)
class Sampling:
    """How every request is sampled and how long it is tried.

    `timeout` bounds one attempt, `deadline` all attempts of a request with the waits between them,
    both in seconds. Time in which the server was out does not count. `extra` are further fields of
    every request, `by_task` of those about a task. A seed is sent modulo `seeds`.
    """

    model: str
    temperature: float
    top_p: float
    max_tokens: int
    timeout: float
    deadline: float
    max_attempts: int
    extra: Mapping[str, Any] = field(default_factory=dict)
    seeds: int = 2**53
    by_task: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def content(prompt: str, urls: Iterable[Iterable[bytes]]) -> bytes:
    """The user turn as JSON: text and media in the order in which stage 1 trained on them.

    `urls` are JSON strings in pieces, one for each placeholder. The SDK would walk through hundreds
    of kilobytes and encode them; bytes it sends as they are.
    """
    remaining = iter(urls)
    parts: list[bytes] = []
    for number, text in enumerate(prompt.split(PLACEHOLDERS["images"])):
        if number:
            parts += [b',{"type":"image_url","image_url":{"url":', *next(remaining), b"}}"]
        if text:
            parts += [b',{"type":"text","text":', json.dumps(text).encode(), b"}"]
    return b"".join((b"[", parts[0][1:], *parts[1:], b"]"))


def body(
    content: bytes, sampling: Sampling, count: int, seed: int, max_tokens: int = 0, task: str = ""
) -> bytes:
    """A chat completion request for `count` samples.

    `max_tokens` 0: the number of `sampling`. `task` "": a request about none.
    """
    settings = {
        "model": sampling.model,
        "n": count,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": max_tokens or sampling.max_tokens,
        "seed": seed % sampling.seeds,
        **sampling.extra,
        **sampling.by_task.get(task, {}),
    }
    head = json.dumps(settings)[:-1].encode()
    return b"".join((head, b', "messages": [{"role": "user", "content": ', content, b"}]}"))


def abort_reason(answer: Any) -> str:
    """The finish reason of an answer that the server itself broke off; "" for any other answer.

    When vLLM shuts down or is put to sleep, it ends all running requests so, with status 200.
    """
    try:
        reasons = [choice.get("finish_reason") for choice in answer["choices"]]
    except PROTOCOL_ERRORS:
        return ""
    return next((reason for reason in reasons if reason in ("abort", "error")), "")


class SingleChoiceError(ValueError):
    """A server answered a request for several samples with one: it ignores `n`."""


def restored_text(message: Mapping[str, Any]) -> tuple[str, Restored]:
    """The model's whole text in a message, and how it was put back together, "" if it was whole.

    A reasoning parser splits a text at its <think> and </think>, and takes these out. A block
    without a <think> was opened by the chat template. Raises TypeError for a text of another type.
    """
    text = message.get("content") or ""
    reasoning = next((message[name] for name in _REASONING_FIELDS if message.get(name)), "")
    if not isinstance(text, str) or not isinstance(reasoning, str):
        raise TypeError("a text is no string")
    if reasoning:
        # Without a text behind it, the block was never closed.
        return "<think>" + reasoning + (f"</think>{text}" if text else ""), "reasoning_field"
    end_at = text.find("</think>")
    if end_at >= 0 and "<think>" not in text[:end_at]:
        return _TEMPLATE_OPENING + text, "template_opening"
    return text, ""


def _probability(choice: Mapping[str, Any]) -> float | None:
    """As `probability_of_first`; a text without log-probs that can be read is still a text."""
    with suppress(*PROTOCOL_ERRORS):
        return probability_of_first(choice)
    return None


def parse_answer(answer: Any, request: Request, model: str, retries: int) -> Outcome:
    """The outcome in a server's answer.

    Raises ValueError unless the answer holds every sample exactly once, and SingleChoiceError for
    the first of several alone.
    """
    try:
        choices = sorted(answer["choices"], key=lambda choice: choice["index"])
        reasons = [choice.get("finish_reason") or "" for choice in choices]
        texts = [restored_text(choice["message"]) for choice in choices]
        firsts = [_probability(choice) for choice in choices]
        usage = answer.get("usage") or {}
        prompt_tokens, completion_tokens = (
            min(max(int(usage.get(name) or 0), 0), MAX_TOKEN_COUNT)
            for name in ("prompt_tokens", "completion_tokens")
        )
        if not all(isinstance(reason, str) for reason in reasons):
            raise TypeError("a finish reason is no string")
    except PROTOCOL_ERRORS as error:
        raise ValueError(f"not a chat completion: {error!r}") from None
    if [choice["index"] for choice in choices] != list(range(request.count)):
        problem = f"{len(choices)} choices came for n={request.count}"
        first_only = [choice["index"] for choice in choices] == [0]
        raise SingleChoiceError(problem) if first_only else ValueError(problem)
    found = zip(texts, reasons, firsts, strict=True)
    responses = [
        Response(
            valid_unicode(text), valid_unicode(reason), model, request.first + index, restored,
            first,
        )
        for index, ((text, restored), reason, first) in enumerate(found)
    ]  # fmt: skip
    return Outcome(
        request, responses, prompt_tokens=prompt_tokens, completion_tokens=completion_tokens,
        retries=retries,
    )  # fmt: skip


def one_line(message: object) -> str:
    """A server's message as one bounded line, without characters that steer a terminal."""
    line = " ".join(str(message).split())[:MAX_MESSAGE_CHARACTERS]
    return valid_unicode("".join(letter if letter.isprintable() else "?" for letter in line))
