"""The merges of single shares: read, and checked to be all shares of one merge."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from cot_reward.errors import UserError
from cot_reward.rows.shards import Shard
from cot_reward.store import read_json

# Settings that may differ between the machines. (The rows of the inputs are compared by file.)
_OWN_SETTINGS = ("shard", "out", "correct", "incorrect", "memory", "workers", "plots")
# A file is the same one in two shares if path, size and side are.
File = tuple[str, int, str]


@dataclass(frozen=True)
class Share:
    """A finished merge of one share."""

    folder: Path
    shard: Shard
    summary: Mapping[str, Any]

    @property
    def settings(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.summary["settings"]
        return found

    def files(self) -> Iterator[tuple[File, Mapping[str, int]]]:
        """The input files, each with its counts."""
        for entry in self.summary["files"]:
            yield (entry["file"], entry["bytes"], entry["side"]), entry


def read_shares(folders: Sequence[Path]) -> list[Share]:
    """The shares in the order of their numbers.

    Raises UserError unless they are all shares of one merge: each of 1 to N once, with the same
    settings, model and judge, and every row of every input file in one of them.
    """
    shares = sorted(map(_read, folders), key=lambda share: share.shard.number)
    first = shares[0]
    for share in shares:
        if share.shard.count != first.shard.count:
            raise UserError(
                f"{share.folder}: is share {share.shard}, but {first.folder} is {first.shard}; "
                "join the shares of one merge"
            )
    numbers = [share.shard.number for share in shares]
    for share, following in pairwise(shares):
        if share.shard == following.shard:
            raise UserError(f"{share.folder} and {following.folder} are both share {share.shard}")
    if missing := sorted(set(range(1, first.shard.count + 1)) - set(numbers)):
        names = ", ".join(f"{number}/{first.shard.count}" for number in missing[:10])
        raise UserError(
            f"--join: {len(missing)} of {first.shard.count} shares are missing: {names}"
            + (", ..." if len(missing) > 10 else "")
        )
    for share in shares[1:]:
        _check_same(first, share)
    _check_complete(shares)
    return shares


def _read(folder: Path) -> Share:
    summary = read_json(folder / "summary.json")
    if not summary:
        raise UserError(f"{folder}: no summary.json that can be read; has this merge finished?")
    shard = (summary.get("settings") or {}).get("shard")
    if summary.get("stage") != "merge" or not shard:
        raise UserError(f"{folder}: its summary.json is not of a merge with --shard")
    return Share(folder, Shard.parse(shard), summary)


def _check_same(first: Share, other: Share) -> None:
    def differ(what: str, one: Any, two: Any) -> UserError:
        return UserError(
            f"{other.folder}: {what} is {two!r}, but {one!r} in {first.folder}; merge all shares "
            "in the same way"
        )

    for name in first.settings.keys() | other.settings.keys():
        one, two = first.settings.get(name), other.settings.get(name)
        if name not in _OWN_SETTINGS and one != two:
            raise differ(f"--{name.replace('_', '-')}", one, two)
    # A small share may have the right texts of one model only.
    one, two = first.summary["trained_model"], other.summary["trained_model"]
    if one != two:
        raise UserError(
            f"{other.folder}: the trained model is {two!r}, but {one!r} in {first.folder}; name it "
            "with --trained-model in all shares"
        )
    if first.summary["judge_version"] != other.summary["judge_version"]:
        raise differ(
            "the version of the judge",
            first.summary["judge_version"],
            other.summary["judge_version"],
        )


def input_files(shares: Sequence[Share]) -> dict[File, Mapping[str, int]]:
    """All input files, each with its counts in the first share that read it."""
    files: dict[File, Mapping[str, int]] = {}
    for share in shares:
        for file, counts in share.files():
            files.setdefault(file, counts)
    return files


def _check_complete(shares: Sequence[Share]) -> None:
    """Raise UserError unless each row that tells its comparison is in one share."""
    held: dict[File, int] = {}
    for share in shares:
        for file, counts in share.files():
            own = counts["rows"] - counts["without_key"] - counts["of_other_shares"]
            held[file] = held.get(file, 0) + own
    for file, counts in input_files(shares).items():
        wanted = counts["rows"] - counts["without_key"]
        if held[file] < wanted:
            raise UserError(
                f"{file[0]}: {wanted - held[file]:,} of its {wanted:,} rows are in no share: the "
                "merges of their shares did not read this file; give every merge all files, or "
                "sample with the same --shard"
            )
        if held[file] > wanted:
            raise UserError(
                f"{file[0]}: the shares have {held[file]:,} rows of it, but it has {wanted:,}; "
                "different files have this name"
            )
