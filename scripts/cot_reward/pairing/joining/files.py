"""The input files of all shares: which of them are one file, and what one merge would say of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cot_reward.errors import UserError
from cot_reward.pairing.joining.shares import Share

Counts = Mapping[str, int]


def _own_rows(counts: Counts) -> int:
    """The rows of a file that are about comparisons of the share."""
    return counts["rows"] - counts["without_key"] - counts["of_other_shares"]


def _is_complete(counts: Counts) -> bool:
    """Whether all rows that tell their comparison are of the share."""
    return _own_rows(counts) > 0 and not counts["of_other_shares"]


@dataclass(frozen=True)
class InputFile:
    """A file of one side, with its size in bytes, and its counts in each share that read it."""

    path: str
    size: int
    side: str
    entries: Sequence[tuple[Share, Counts]]

    @property
    def rows(self) -> int:
        return self.entries[0][1]["rows"]

    @property
    def keyless_rows(self) -> int:
        return self.entries[0][1]["without_key"]

    def check(self) -> None:
        """Raise UserError unless each row that tells its comparison is in one share."""
        held = sum(_own_rows(counts) for _, counts in self.entries)
        wanted = self.rows - self.keyless_rows
        if held < wanted:
            raise UserError(
                f"{self.path}: {wanted - held:,} of its {wanted:,} rows are in no share: the "
                "merges of their shares did not read this file; give every merge all files, or "
                "sample with the same --shard"
            )
        if held > wanted:
            raise UserError(
                f"{self.path}: the shares have {held:,} rows of it, but it has {wanted:,}; "
                "different files have this name"
            )

    def summary(self) -> dict[str, Any]:
        """What one merge would say of it."""
        comparisons, shared = (
            sum(counts[of] for _, counts in self.entries) for of in ("comparisons", "shared")
        )
        return {
            "file": self.path, "side": self.side, "comparisons": comparisons, "shared": shared,
            "bytes": self.size, "rows": self.rows,
        }  # fmt: skip


def input_files(shares: Sequence[Share]) -> list[InputFile]:
    """All input files, in the order in which the shares name them.

    A file is the same one in two shares if path, size and side are. But where several shares have
    every row of it, it is a file of its own in each: a comparison is of one share.
    """
    groups: dict[tuple[str, int, str], list[tuple[Share, Counts]]] = {}
    for share in shares:
        for entry in share.summary["files"]:
            name = entry["file"], entry["bytes"], entry["side"]
            groups.setdefault(name, []).append((share, entry))
    return [
        InputFile(*name, entries) for name, group in groups.items() for entries in _different(group)
    ]


def _different(group: list[tuple[Share, Counts]]) -> list[list[tuple[Share, Counts]]]:
    """The files of one path, size and side: the entries of each."""
    complete = [entry for entry in group if _is_complete(entry[1])]
    if len(complete) < 2:
        return [group]
    others = [entry for entry in group if entry not in complete]
    # A share without a row of it may have read the first one as well; with rows it read another.
    without = [entry for entry in others if not _own_rows(entry[1])]
    with_rows = [entry for entry in others if _own_rows(entry[1])]
    first, *rest = ([entry] for entry in complete)
    return [first + without, *rest, *([with_rows] if with_rows else [])]


def check_complete(shares: Sequence[Share]) -> None:
    """Raise UserError unless every row of every file that tells its comparison is in one share."""
    for file in input_files(shares):
        file.check()
