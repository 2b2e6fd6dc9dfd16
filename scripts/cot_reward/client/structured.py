"""Does a server force a regular expression on its texts, from the first token on?

A server that does not know the field may ignore it, and a reasoning parser has vLLM force the form
only behind the reasoning. Such texts would look forced. So the server is asked for a text that no
model writes by itself.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from cot_reward.client import wire
from cot_reward.client.server import AttemptError, Server, ServerError
from cot_reward.client.wire import PROTOCOL_ERRORS, Sampling, one_line, restored_text

_QUESTION = wire.content("Text Caption: [a red circle]. Describe both images.", [])
_FORCED = "ZZZZZZZ"
_TOKENS = 16
# What a chat template ends with that leaves the think block open.
_OPENED = "<think>"


def forced(regex: str) -> dict[str, Any]:
    """The field of a request by which vLLM takes a regular expression."""
    return {"structured_outputs": {"regex": regex}}


async def template_opens_think(server: Server, sampling: Sampling) -> bool:
    """Whether the chat template has written <think> where the model's text begins.

    Raises ServerError for a server that does not force the whole text, or does not tell its prompt.
    """
    extra = {**sampling.extra, **forced(_FORCED), "return_prompt_text": True}
    answer = await _ask(server, replace(sampling, extra=extra), _TOKENS)
    try:
        message = answer["choices"][0]["message"]
        text, how = restored_text(message)
        prompt = answer.get("prompt_text")
    except PROTOCOL_ERRORS as error:
        raise ServerError(f"{server.base_url}: not a chat completion: {error!r:.100}") from None
    if text.removeprefix(_OPENED).strip() != _FORCED:
        why = (
            "it has a reasoning parser, behind whose block vLLM begins to force; start it without "
            "--reasoning-parser"
            if how == "reasoning_field"
            else "it ignores structured_outputs, which vLLM has"
        )
        raise ServerError(
            f"{server.base_url} does not force a form on whole texts: where {_FORCED} alone was "
            f"allowed, the model wrote '{one_line(text):.60}'. Perhaps {why}; or leave "
            "--structured-output out"
        )
    if not isinstance(prompt, str):
        raise ServerError(
            f"{server.base_url} does not tell the text of its prompt (return_prompt_text, which "
            "vLLM 0.32 has), so that it is not known whether the chat template opens <think>; "
            "leave --structured-output out"
        )
    return prompt.rstrip().endswith(_OPENED)


async def check_accepted(
    server: Server, sampling: Sampling, by_task: Mapping[str, Mapping[str, Any]]
) -> None:
    """Send each task's own grammar once, which the server keeps. Raises ServerError if refused."""
    for fields in by_task.values():
        await _ask(server, replace(sampling, extra={**sampling.extra, **fields}), 1)


async def _ask(server: Server, sampling: Sampling, max_tokens: int) -> Any:
    try:
        body = wire.body(_QUESTION, sampling, count=1, seed=0, max_tokens=max_tokens)
        return await server.complete(body, sampling.timeout)
    except AttemptError as fault:
        refused = fault.kind in ("refused", "unknown")
        raise ServerError(
            f"{server.base_url} "
            + ("does not take" if refused else "did not answer to the question whether it takes")
            + f" --structured-output ({fault.detail}); "
            + ("leave it out, or use vLLM" if refused else "try again"),
            may_pass=not refused,
        ) from None
