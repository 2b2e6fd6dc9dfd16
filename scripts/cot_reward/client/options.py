"""How servers are asked, read from the words of flags and arguments alike."""

import json
from collections.abc import Mapping
from typing import Any

from cot_reward.client.wire import NEUTRAL_SAMPLING

# The SDK holds at most 1,000 connections, and a probe must find a free one.
MAX_FIXED_CONCURRENCY = 900


def template_kwargs(text: str | None) -> dict[str, Any]:
    """The arguments of the chat template in a JSON object. Raises ValueError."""
    found = json.loads(text or "{}")
    if not isinstance(found, dict):
        raise ValueError(f"it is {found!r:.60}")
    return found


def fixed_concurrency(text: str) -> int | None:
    """Requests in flight; None for "auto". Raises ValueError."""
    if text == "auto":
        return None
    if not (text.isdecimal() and 0 < int(text) <= MAX_FIXED_CONCURRENCY):
        raise ValueError(f"a number from 1 to {MAX_FIXED_CONCURRENCY}, or auto")
    return int(text)


def further_fields(sampling_defaults: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of every request: neutral sampling, unless the server's own, and `kwargs`."""
    fields = dict(NEUTRAL_SAMPLING) if sampling_defaults == "neutral" else {}
    return fields | ({"chat_template_kwargs": dict(kwargs)} if kwargs else {})
