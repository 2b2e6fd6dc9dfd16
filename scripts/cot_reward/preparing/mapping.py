"""Column maps: which columns of a data set's rows hold a comparison (--map TARGET=COLUMN ...)."""

import contextlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import StatisticsError, fmean
from typing import Any

from cot_reward.errors import nearest
from cot_reward.rows.labels import NUMBERS, FileLabels, Meaning, TieError

# What a map may say where to find.
PAIR = ("text", "first", "second", "label", "context", "first_score", "second_score")
RANKED = ("text", "medium", "rank", "score", "group", "context")
CONSTANT = "const:"
_PATTERN = "~"
_SLICE = re.compile(r"(-?\d*):(-?\d*)")
_MISSING = object()

Column = Callable[[Mapping[str, Any]], Any]


def column(name: str) -> Column:
    """What reads a column. A dot leads into an object or a list: `response.0`, `images.1.path`.

    A text of JSON is such an object or list, too. `images.:8` and `images.8:` are parts of a list.
    A name that has dots itself wins. `const:VALUE` is the same value in every row.
    `COLUMN~PATTERN` finds a regular expression in a column of text, and takes the first of its
    groups that matched. The reader raises ValueError for a row without the column or the pattern;
    this function does for what is no regular expression.
    """
    if name.startswith(CONSTANT):
        constant = name.removeprefix(CONSTANT)
        return lambda row: constant
    place, is_pattern, expression = name.partition(_PATTERN)
    parts = place.split(".")

    def read(row: Mapping[str, Any]) -> Any:
        value = row.get(place, _MISSING)
        if value is _MISSING:
            value = _inside(row, parts)
        if value is _MISSING:
            raise ValueError(f"has no '{place}'; its columns are {', '.join(map(str, row)):.300}")
        return value

    if not is_pattern:
        return read
    try:
        pattern = re.compile(expression, re.DOTALL)
    except re.error as error:
        raise ValueError(f"{expression!r} is no regular expression: {error}") from None
    if not pattern.groups:
        raise ValueError(f"{expression!r} has no group: (...) says what is taken")

    def search(row: Mapping[str, Any]) -> str:
        text = read(row)
        found = pattern.search(text) if isinstance(text, str) else None
        if found is None:
            raise ValueError(f"'{place}' is {text!r:.80}, without {expression:.80}")
        return next((group for group in found.groups() if group is not None), "")

    return search


def opened(value: Any) -> Any:
    """The object or list that a text holds as JSON; any other value as it is."""
    if isinstance(value, str) and value[:1] in ("{", "["):
        with contextlib.suppress(ValueError, RecursionError):
            return json.loads(value)
    return value


def _inside(value: Any, parts: Sequence[str]) -> Any:
    if not parts:
        return value
    value = opened(value)
    if isinstance(value, Mapping):
        # The longest name first: endings of WebDataset have dots.
        for end in range(len(parts), 0, -1):
            key = ".".join(parts[:end])
            if key in value:
                return _inside(value[key], parts[end:])
        return _MISSING
    if not isinstance(value, list | tuple):
        return _MISSING
    if found := _SLICE.fullmatch(parts[0]):
        ends = (int(number) if number else None for number in found.groups())
        return _inside(value[slice(*ends)], parts[1:])
    is_number = parts[0].removeprefix("-").isdecimal()
    if is_number and -len(value) <= int(parts[0]) < len(value):
        return _inside(value[int(parts[0])], parts[1:])
    return _MISSING


@dataclass(frozen=True)
class RawPair:
    """A comparison whose media are values of the row as it stands: paths, bytes, lists of frames.

    `may_swap`: the row always names the better candidate first, so that the place says nothing.
    """

    text: str
    candidates: tuple[Any, Any]
    label: int
    context: tuple[Any, ...]
    may_swap: bool = False


@dataclass(frozen=True)
class RawRanked:
    """One of the candidates of a group. A higher `value` is better."""

    group: Any
    text: str
    medium: Any
    value: float
    context: tuple[Any, ...]


class ColumnMap:
    """Where the rows of a data set hold a comparison, or (`is_ranked`) one candidate of a group."""

    def __init__(self, pairs: Sequence[str], tie_margin: float = 0.0) -> None:
        """`pairs`: TARGET=COLUMN texts. Raises ValueError for a map that makes no comparison."""
        self._names = dict(map(_parsed, pairs))
        if len(self._names) < len(pairs):
            raise ValueError("--map names a target twice")
        self.is_ranked = "medium" in self._names
        allowed = RANKED if self.is_ranked else PAIR
        for name in self._names:
            if name not in allowed:
                raise ValueError(
                    f"--map {name}=...: not one of {', '.join(allowed)}.{nearest(name, allowed)}"
                )
        needed = ("text", "medium", "group") if self.is_ranked else ("text", "first", "second")
        for name in needed:
            if name not in self._names:
                raise ValueError(f"--map has no {name}=COLUMN; needed are {', '.join(needed)}")
        ways = [("rank",), ("score",)] if self.is_ranked else [("label",), _SCORES]
        if {name for way in ways for name in way} & self._names.keys() not in map(set, ways):
            raise ValueError(f"--map needs {' or '.join(' and '.join(way) for way in ways)}")
        self._read = {name: column(source) for name, source in self._names.items()}
        self._margin = tie_margin
        self.label_is_constant = self._names.get("label", "").startswith(CONSTANT)

    def pair(
        self, row: Mapping[str, Any], labels: FileLabels, usual: Mapping[str, Meaning] = NUMBERS
    ) -> RawPair:
        """The comparison of a row; `usual`: what labels mean unless the user says otherwise.

        Raises TieError, and ValueError for a row that has none.
        """
        candidates = self._read["first"](row), self._read["second"](row)
        if "label" in self._read:
            label = labels.preferred(self._read["label"](row), usual)
        else:
            first, second = (_number(self._read[name](row), name) for name in _SCORES)
            if abs(first - second) <= self._margin:
                labels.ties += 1
                raise TieError("the two scores are a tie")
            label = 1 if first > second else 2
        return RawPair(
            self._text(row), candidates, label, self._context(row), self.label_is_constant
        )

    def ranked(self, row: Mapping[str, Any]) -> RawRanked:
        """The candidate of a row. Raises ValueError for a row that has none."""
        name = "rank" if "rank" in self._read else "score"
        value = _number(self._read[name](row), name)
        group = self._read["group"](row)
        if group is None or group == "":
            raise ValueError("its group is missing")
        return RawRanked(
            group, self._text(row), self._read["medium"](row),
            -value if name == "rank" else value, self._context(row),
        )  # fmt: skip

    def _text(self, row: Mapping[str, Any]) -> str:
        text = self._read["text"](row)
        if not isinstance(text, str):
            raise ValueError(f"'{self._names['text']}' must be a text, not {text!r:.60}")
        return text

    def _context(self, row: Mapping[str, Any]) -> tuple[Any, ...]:
        if "context" not in self._read:
            return ()
        value = self._read["context"](row)
        return tuple(value) if isinstance(value, list | tuple) else (value,)


_SCORES = ("first_score", "second_score")


def _parsed(text: str) -> tuple[str, str]:
    target, equals, source = (part.strip() for part in text.partition("="))
    if not (target and equals and source):
        raise ValueError(f"--map {text}: must be TARGET=COLUMN")
    return target, source


def _number(value: Any, name: str) -> float:
    """A number, or the mean of a list of them, such as the ratings of several people."""
    try:
        number = fmean(value) if isinstance(value, list | tuple) else float(value)
    except (TypeError, ValueError, OverflowError, StatisticsError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"the {name} is {value!r:.60}; it must be a number")
    return number
