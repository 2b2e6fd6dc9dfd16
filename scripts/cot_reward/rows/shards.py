"""Shares of the comparisons, so that several machines do disjoint parts of one job.

A comparison, with all its rows, is of one share, whichever program asks: the client, the merger.
"""

import re
from dataclasses import dataclass
from typing import Self

# More digits would change nothing: 64 bits spread evenly over any number of machines.
_DIGITS = 16


@dataclass(frozen=True)
class Shard:
    """Share `number` (from 1) of `count`. Raises ValueError for a number outside 1 to `count`."""

    number: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise ValueError(
                f"{self} is no share: the first number is from 1 to the second, as in 1/8 to 8/8"
            )

    @classmethod
    def parse(cls, text: str) -> Self:
        """The share that "I/N" names. Raises ValueError for a text that names none."""
        found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
        if not found:
            raise ValueError(f"{text!r} is no share: write I/N, as in 2/8 for the second of eight")
        return cls(int(found[1]), int(found[2]))

    def holds(self, key: str) -> bool:
        """Whether a comparison is of this share. `key`: see `records.comparison_key`."""
        return 1 + int(key[:_DIGITS], 16) % self.count == self.number

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"
