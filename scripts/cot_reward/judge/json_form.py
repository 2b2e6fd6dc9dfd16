"""The output form `json`: one JSON object with shared points in dimensions, and a winner."""

import json
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

from cot_reward.records import Task

# In every dimension the two scores share so many points.
_POINTS = Decimal(10)
_MOST_CHARACTERS = 2**18
_MOST_DIGITS = 12


class _RefusedError(ValueError):
    """JSON that could be read in two ways."""


def read_json(text: str, task: Task) -> tuple[int, str] | None:
    """The answer (1 or 2) and the coherence; None for a text that is not of the form.

    The text is one object, alone or in one fence of Markdown, whose "winner" is one of the two
    candidates ("Image 1") or answer strings. Its scores are objects of two numbers, for "Image 1"
    and "Image 2", wherever they stand in the object. Scores that do not share ten points are a
    `wrong_sum`; then come `tie` and `contradicts`, by the sums of all scores. Without any score it
    is `no_totals`.
    """
    found = _object(_without_fence(text.strip()))
    if found is None:
        return None
    names = (f"{task.noun} 1", f"{task.noun} 2")
    winner = found.get("winner")
    if not isinstance(winner, str) or winner.strip() not in (*names, *task.answers):
        return None
    answer = 1 + (winner.strip() in (names[1], task.answers[1]))
    try:
        scores = list(_scores(found, names))
    except ValueError:
        # A score that is no number, or stands alone.
        return answer, "wrong_sum"
    if not scores:
        return answer, "no_totals"
    if any(first + second != _POINTS or min(first, second) < 0 for first, second in scores):
        return answer, "wrong_sum"
    first, second = (sum(column) for column in zip(*scores, strict=True))
    if first == second:
        return answer, "tie"
    return answer, "coherent" if (1 if first > second else 2) == answer else "contradicts"


def named_scores(text: str, task: Task) -> list[tuple[str, Decimal, Decimal]]:
    """The scores of a text of the form: what they are of, and those of candidates 1 and 2.

    A score is of the outermost "name" around it (a category), else of the outermost key. Empty
    where `read_json` finds a score that is no number.
    """
    found = _object(_without_fence(text.strip()))
    names = (f"{task.noun} 1", f"{task.noun} 2")
    try:
        return list(_named(found, names, "")) if found else []
    except ValueError:
        return []


def _named(value: Any, names: tuple[str, str], name: str) -> Iterator[tuple[str, Decimal, Decimal]]:
    if isinstance(value, list):
        for item in value:
            yield from _named(item, names, name)
    elif isinstance(value, Mapping):
        own = value.get("name")
        name = name or (own.strip() if isinstance(own, str) else "")
        if any(candidate in value for candidate in names):
            for first, second in _scores(value, names):
                yield name, first, second
            return
        for key, item in value.items():
            # A list of named categories stands under a key that says nothing of them.
            yield from _named(item, names, name or ("" if isinstance(item, list) else key))


def winner_block(text: str) -> str | None:
    """The part of the text that names the winner; None where there is not exactly one."""
    found = re.findall(r'"winner"\s*:\s*"[^"\\]*"', text)
    return found[0] if len(found) == 1 else None


def _without_fence(text: str) -> str:
    """What stands between the first and the last line of a fence; any other text as it is."""
    first, _, rest = text.partition("\n")
    body, _, last = rest.rpartition("\n")
    is_fence = first.strip().casefold() in ("```", "```json") and last.strip() == "```"
    return body.strip() if is_fence else text


def _object(text: str) -> dict[str, Any] | None:
    if len(text) > _MOST_CHARACTERS or not text.startswith("{"):
        return None

    def pairs(entries: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(entries)
        if len(found) < len(entries):
            raise _RefusedError("a key comes twice")
        return found

    def number(digits: str) -> Decimal:
        # Sums stay exact, and no text can make them long.
        value = Decimal(digits) if len(digits) <= _MOST_DIGITS else None
        if value is None or abs(value.adjusted()) > _MOST_DIGITS:
            raise _RefusedError("a number of many digits")
        return value

    def refuse(constant: str) -> Any:
        raise _RefusedError(constant)

    try:
        found = json.loads(
            text, object_pairs_hook=pairs, parse_int=number, parse_float=number,
            parse_constant=refuse,
        )  # fmt: skip
    except (ValueError, RecursionError, ArithmeticError):
        return None
    return found if isinstance(found, dict) else None


def _scores(value: Any, names: tuple[str, str]) -> Iterator[tuple[Decimal, Decimal]]:
    """The two scores of every dimension in a value. Raises ValueError for others than numbers."""
    if isinstance(value, list):
        for item in value:
            yield from _scores(item, names)
    elif isinstance(value, Mapping):
        if any(name in value for name in names):
            first, second = (value.get(name) for name in names)
            if not isinstance(first, Decimal) or not isinstance(second, Decimal):
                raise ValueError("a score is no number")
            yield first, second
            return
        for item in value.values():
            yield from _scores(item, names)
