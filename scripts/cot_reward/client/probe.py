"""The first question to a server: which parameters it takes, and which weights answer.

A folder of responses is bound to a model's name, and a server may serve other weights under the
same name. So the greedy answer to a fixed text, with its log-probs, is kept with the settings.
"""

import asyncio
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import combinations
from statistics import fmean
from typing import Any

from cot_reward.client import wire
from cot_reward.client.server import AttemptError, Server, ServerError
from cot_reward.client.wire import NEUTRAL_SAMPLING, PROTOCOL_ERRORS, Sampling
from cot_reward.records import valid_unicode

_TEXT = (
    "Text Caption: [a red circle]. Describe both images step by step, score each, and say which "
    "one fits its caption better."
)
_TOKENS = 16
# A fault of the first question may pass: it is asked so many times in all, with these waits.
TRIES, WAIT_SECONDS = 3, 0.5
# Servers of 32 bits refuse a larger seed. Sample i has the seed + i.
SMALL_SEEDS = 2**31 - 2**16
# Batches and devices change a log-prob of bf16 by some hundredths, at most by 0.1 where a logit of
# 20 to 30 is rounded. Two trainings from one model differed by 0.15 to 0.75 at one token of 16.
_MAX_DIFFERENCE, _MAX_MEAN_DIFFERENCE = 0.3, 0.1
# Where the two best tokens are nearer than this, the last bits decide which one is greedy.
_NEAR_TIE = 0.2


@dataclass(frozen=True)
class Probe:
    """What a server told: the parts of a request that it refused, why, and its greedy answer.

    refused: of "logprobs", "large seeds" and "neutral sampling"
    tokens: the answer as [token, log-prob, lead over the second token]; without log-probs [text]
    """

    refused: tuple[str, ...] = ()
    reason: str = ""
    tokens: list[list[Any]] = field(default_factory=list)


async def probe(server: Server, sampling: Sampling) -> Probe:
    """Ask the fixed text greedily, with ever fewer parts while the server does not take them.

    A server that refuses them all tells nothing. Raises ServerError, which may pass, for a server
    that does not answer now: nothing is known of its weights then.
    """
    parts = ["logprobs", "large seeds"]
    if sampling.extra.keys() & NEUTRAL_SAMPLING.keys():
        parts.append("neutral sampling")
    reason, broken = "", list[tuple[str, ...]]()
    choices = [some for count in range(len(parts) + 1) for some in combinations(parts, count)]
    for left_out in choices:
        try:
            answer = await _ask(server, sampling, left_out)
        except AttemptError as fault:
            reason = reason or fault.detail
            if fault.kind != "refused":
                # Some servers break where others refuse: does this one answer at all?
                if not broken:
                    await _answers(server, sampling, choices[-1])
                broken.append(left_out)
            continue
        for less in broken:
            # A fault that has passed by now was not about what is left out.
            with suppress(AttemptError):
                return Probe(less, reason, _tokens(await _ask(server, sampling, less)))
        return Probe(left_out, reason, _tokens(answer))
    return Probe()


async def _answers(server: Server, sampling: Sampling, left_out: Sequence[str]) -> None:
    """Raises ServerError unless the server answers the question without these parts, or refuses."""
    try:
        await _ask(server, sampling, left_out)
    except AttemptError as fault:
        if fault.kind != "refused":
            raise _silent(server, fault.detail) from None


async def _ask(server: Server, sampling: Sampling, left_out: Sequence[str]) -> Any:
    """The answer to the fixed text.

    Raises AttemptError where the server refuses or breaks, again and again, and ServerError for
    another fault.
    """
    for left in reversed(range(TRIES)):
        try:
            return _with_message(await server.complete(_body(sampling, left_out), sampling.timeout))
        except AttemptError as fault:
            if fault.kind == "refused":
                raise
            # A time-out has waited long enough.
            if not left or fault.kind == "timeout":
                if fault.kind in ("error", "malformed"):
                    raise
                raise _silent(server, fault.detail) from None
        await asyncio.sleep(WAIT_SECONDS)
    raise AssertionError


def _with_message(answer: Any) -> Any:
    """Raises AttemptError for what is no chat completion, such as an error under status 200."""
    try:
        _ = answer["choices"][0]["message"]
    except PROTOCOL_ERRORS as error:
        raise AttemptError("malformed", f"not a chat completion: {error!r:.100}") from None
    return answer


def _silent(server: Server, detail: str) -> ServerError:
    return ServerError(
        f"{server.base_url} lists its model, and did not answer the first question ({detail}), so "
        "that its weights are not known; see its log, and run the same command again",
        may_pass=True,
    )


def _body(sampling: Sampling, left_out: Sequence[str]) -> bytes:
    extra = dict(sampling.extra)
    if "neutral sampling" in left_out:
        extra = {name: value for name, value in extra.items() if name not in NEUTRAL_SAMPLING}
    if "logprobs" not in left_out:
        extra |= {"logprobs": True, "top_logprobs": 2}
    seeds = SMALL_SEEDS if "large seeds" in left_out else sampling.seeds
    asked = replace(sampling, temperature=0.0, extra=extra, seeds=seeds)
    content = wire.content(_TEXT, [])
    return wire.body(content, asked, count=1, seed=seeds - 1, max_tokens=_TOKENS)


def _tokens(answer: Any) -> list[list[Any]]:
    try:
        choice = answer["choices"][0]
        listed = (choice.get("logprobs") or {}).get("content") or []
        if not listed:
            return [[valid_unicode(wire.restored_text(choice["message"])[0])]]
        return [
            [valid_unicode(token["token"]), _number(token["logprob"]), _lead(token)]
            for token in listed
        ]
    except PROTOCOL_ERRORS:
        return []


def _number(value: Any) -> float:
    # vLLM writes -9999 for minus infinity.
    return round(max(float(value), -9999.0), 4)


def _lead(token: Mapping[str, Any]) -> float:
    """How far the token's log-prob is above that of the best other one."""
    others = [
        _number(top["logprob"])
        for top in token.get("top_logprobs") or []
        if top["token"] != token["token"]
    ]
    return round(_number(token["logprob"]) - max(others), 4) if others else 0.0


def difference(before: Sequence[Sequence[Any]], now: Sequence[Sequence[Any]]) -> str:
    """What differs between two greedy answers beyond rounding, in words; "" where nothing does.

    Nothing can be said of an answer that is missing or has no log-probs on one side only.
    """
    if not before or not now or len(before[0]) != len(now[0]):
        return ""
    if len(before[0]) == 1:
        texts = [json.dumps(tokens[0][0]) for tokens in (before, now)]
        return f"the answer was {texts[0]:.100} and is {texts[1]:.100}" if before != now else ""
    gaps = []
    for (token, logprob, lead), (token_now, logprob_now, lead_now) in zip(
        before, now, strict=False
    ):
        if token != token_now:
            if min(lead, lead_now) <= _NEAR_TIE:
                break
            return f"the greedy answer goes on with {token!r:.40} there, with {token_now!r:.40} now"
        gaps.append(abs(logprob - logprob_now))
    if gaps and (max(gaps) > _MAX_DIFFERENCE or fmean(gaps) > _MAX_MEAN_DIFFERENCE):
        return (
            f"log-probs of the same {len(gaps)} tokens differ by {fmean(gaps):.2f} on average and "
            f"{max(gaps):.2f} at most"
        )
    return ""
