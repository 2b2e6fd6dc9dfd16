"""What a benchmark is: where its rows are, what an item of it is, and its own rule of scoring."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cot_reward.evaluation.answers import Answers
from cot_reward.preparing.mapping import RawPair

# The truth of an item that says neither candidate is better.
TIE = 0


@dataclass(frozen=True)
class Found:
    """An item as it stands in a row, with its media as they stand there; `better`: 1, 2 or TIE."""

    name: str
    group: str
    better: int
    text: str
    candidates: tuple[Any, Any]
    context: tuple[Any, ...] = ()

    def raw(self) -> RawPair:
        """For the client, which wants a label of every question; that of a tie says nothing."""
        return RawPair(self.text, self.candidates, self.better or 1, self.context)


@dataclass(frozen=True)
class Official:
    """A score by a benchmark's own rule. All shares are fractions.

    groups: group -> share, in the order that the benchmark prints them
    overall: its headline number, and how it follows from the groups ("items", "groups", or "" where
        the rule is another one)
    counts: what the rule left out or decided by chance
    """

    rule: str
    groups: Mapping[str, float]
    overall: float
    overall_is: str
    counts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Benchmark:
    """A benchmark of pairs.

    repository, configuration: on the hub of Hugging Face
    files: patterns of its files in a local snapshot, the first that finds some
    rows_key: the key of the list of rows, where a file is one JSON object
    rows: split -> the number of rows that it is published with (0: not known); the first one is the
        default
    find: the item of a row (number from 1), or None for a row that is none. Raises ValueError
    official: its own score; None where its rule cannot be had by answers to pairs
    predictions: name and content of the file that its own scorer reads, where it reads one
    source: where the official rule and the columns are from
    unseen: what is assumed, because the rows could not be seen here
    """

    name: str
    task: str
    repository: str
    rows: Mapping[str, int]
    find: Callable[[Mapping[str, Any], int], Found | None]
    official: Callable[[Answers], Official] | None
    source: str
    configuration: str | None = None
    files: Sequence[str] = ("*.parquet", "*.json", "*.jsonl", "*.csv")
    rows_key: str = ""
    predictions: Callable[[Answers], tuple[str, str]] | None = None
    unseen: str = ""


def text_at(row: Mapping[str, Any], name: str) -> str:
    """The text in a column. Raises ValueError for a row without it."""
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"'{name}' must be a text, not {value!r:.60}")
    return value


def medium_at(row: Mapping[str, Any], name: str) -> Any:
    """The medium in a column, as it stands there. Raises ValueError for a row without it."""
    value = row.get(name)
    if not value:
        raise ValueError(f"'{name}' must be a medium, not {value!r:.60}")
    return value


def meaning(row: Mapping[str, Any], name: str, meanings: Mapping[str, int]) -> int:
    """What the label in a column means: 1, 2 or TIE. Raises ValueError for any other label."""
    value = str(row.get(name)).strip()
    if value not in meanings:
        raise ValueError(f"'{name}' is {value!r:.60}; it must be {', '.join(meanings)}")
    return meanings[value]
