"""Labels of raw data: what a value means, and which values a file has.

A label is never guessed. Data sets count their candidates from 1 or from 0, name them (A and B), or
have a value for a tie; a label that is read as another candidate trains the model upside down.
"""

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from cot_reward.errors import UserError
from cot_reward.store import dump

Meaning = Literal["1", "2", "tie", "bad"]
_MEANINGS: tuple[Meaning, ...] = ("1", "2", "tie", "bad")

# What labels mean unless the user says otherwise.
NUMBERS: dict[str, Meaning] = {"1": "1", "2": "2"}

_MAX_SHOWN_VALUES = 6
_MAX_SHOWN_CHARACTERS = 60


class TieError(ValueError):
    """A record whose label says that neither candidate is better."""


class UnknownLabelError(ValueError):
    """A record whose label has no known meaning."""


def parse_meanings(pairs: Sequence[str]) -> dict[str, Meaning]:
    """VALUE=MEANING texts as a mapping; empty for no texts.

    Raises ValueError for a text of another form, a value with two meanings, and when no value means
    1 or no value means 2.
    """
    meanings: dict[str, Meaning] = {}
    for pair in pairs:
        value, _, word = pair.rpartition("=")
        meaning = next((known for known in _MEANINGS if known == word.strip()), None)
        value = value.strip()
        if meaning is None or not value:
            raise ValueError(f"--labels {pair}: must be VALUE=1, VALUE=2, VALUE=tie or VALUE=bad")
        if meanings.setdefault(value, meaning) != meaning:
            raise ValueError(f"--labels gives {value!r} two meanings")
    if meanings and not {"1", "2"} <= set(meanings.values()):
        raise ValueError("--labels must name a value that means 1 and a value that means 2")
    return meanings


class FileLabels:
    """The labels of one file. `meanings` replaces what its adapter takes for granted.

    `seen` counts the records of each value, `ties` the records that say neither.
    """

    def __init__(self, meanings: Mapping[str, Meaning] | None = None) -> None:
        self._given = meanings or {}
        self.seen: Counter[str] = Counter()
        self._unknown: Counter[str] = Counter()
        self.ties = 0

    def preferred(self, value: Any, usual: Mapping[str, Meaning] = NUMBERS) -> int:
        """The preferred candidate, 1 or 2. `usual`: what the adapter takes for granted.

        Raises TieError, UnknownLabelError, and ValueError for a missing or bad label.
        """
        word = _word(value)
        if not word:
            raise ValueError("the label is missing")
        self.seen[word] += 1
        meaning = (self._given or usual).get(word)
        if meaning == "tie":
            self.ties += 1
            raise TieError(f"the label {_shown(word)} means a tie")
        if meaning == "bad":
            raise ValueError(f"the label {_shown(word)} means a bad record, by --labels")
        if meaning is None:
            self._unknown[word] += 1
            raise UnknownLabelError(
                f"the label is {_shown(word)}; it must be {' or '.join(self._given or usual)}"
            )
        return int(meaning)

    def check(self, path: Path) -> None:
        """Raise UserError, with all values and their counts, when one of them was not known."""
        if not self._unknown:
            return
        words = [word for word, _ in self.seen.most_common(_MAX_SHOWN_VALUES)]
        rest = len(self.seen) - len(words)
        counts = ", ".join(f"{_shown(word)} ({self.seen[word]:,})" for word in words)
        flags = " ".join(shlex.quote(f"{word:.{_MAX_SHOWN_CHARACTERS}}=?") for word in words)
        first = _shown(self._unknown.most_common(1)[0][0])
        raise UserError(
            f"{path}: it is not known which candidate a label of {first} prefers; the labels are "
            f"{counts}{f' and {rest:,} other values' if rest else ''}. Say what each of them "
            f"means: --labels {flags}{' ...' if rest else ''}, with 1 (the first candidate is "
            "better), 2 (the second), tie, or bad (leave the record out) for each ?"
        )


def _word(value: Any) -> str:
    """A label as it is written in --labels; "" for a missing one. 1, 1.0 and "1" are one label."""
    # A gap in a column of numbers is NaN, which no value equals, not even itself.
    if value is None or value != value:
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    try:
        word = value.strip() if isinstance(value, str) else dump(value)
    except (TypeError, ValueError):
        # Types that JSON lacks: a decimal number, bytes, a time.
        word = str(value).strip()
    number = word.removesuffix(".0")
    return number if number.removeprefix("-").isdecimal() else word


def _shown(word: str) -> str:
    short = word if len(word) <= _MAX_SHOWN_CHARACTERS else word[:_MAX_SHOWN_CHARACTERS] + "..."
    return short if short.isprintable() else repr(short)
