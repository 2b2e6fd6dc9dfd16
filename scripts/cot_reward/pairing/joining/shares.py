"""The merges of single shares: read, and checked to be all shares of one merge."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from cot_reward.errors import UserError
from cot_reward.pairing.joining.needed import check_summary
from cot_reward.rows.shards import Shard
from cot_reward.store import read_json

# Settings that may differ between the machines. (The rows of the inputs are compared by file.)
_OWN_SETTINGS = ("shard", "out", "correct", "incorrect", "memory", "workers", "plots")


@dataclass(frozen=True)
class Share:
    """A finished merge of one share; its summary has all that `needed.check_summary` wants."""

    folder: Path
    shard: Shard
    summary: Mapping[str, Any]

    @property
    def settings(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.summary["settings"]
        return found


def read_shares(folders: Sequence[Path]) -> list[Share]:
    """The shares in the order of their numbers.

    Raises UserError unless they are all shares of one merge: each of 1 to N once, with the same
    settings, held-out files, model and judge.
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
        _check_held_out(first, share)
    _check_trained_model(shares)
    return shares


def changed(path: Path) -> str:
    """What is said of a file that has not the sha256 that its merge wrote down."""
    return (
        f"{path}: is missing, or not as its merge left it (summary.json has another sha256); copy "
        "the file again, or merge this share anew"
    )


def _read(folder: Path) -> Share:
    path = folder / "summary.json"
    summary = read_json(path)
    if not summary:
        raise UserError(f"{folder}: no summary.json that can be read; has this merge finished?")
    settings = summary.get("settings")
    shard = settings.get("shard") if isinstance(settings, dict) else None
    if summary.get("stage") != "merge" or not shard:
        raise UserError(f"{folder}: its summary.json is not of a merge with --shard")
    try:
        number = Shard.parse(str(shard))
    except ValueError as error:
        raise UserError(f"{path}: 'shard': {error}; merge this share anew") from None
    check_summary(summary, path)
    return Share(folder, number, summary)


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


def _check_held_out(first: Share, other: Share) -> None:
    """Raise UserError unless both shares left the same comparisons out.

    The files may have other names: the machines may have them in other places.
    """
    told = []
    for share, without in ((first, other), (other, first)):
        there = Counter(file["digest"] for file in without.summary["held_out_files"])
        there.subtract(file["digest"] for file in share.summary["held_out_files"])
        names = [
            file["file"] for file in share.summary["held_out_files"] if there[file["digest"]] < 0
        ]
        if names:
            told.append(f"only {share.folder} has the rows of {', '.join(names)}")
    if told:
        raise UserError(
            f"{first.folder} and {other.folder}: their held-out files (--exclude) differ: "
            f"{'; '.join(told)}; give every machine the same files, and merge the share anew that "
            "has others"
        )


def _check_trained_model(shares: Sequence[Share]) -> None:
    """Raise UserError for a name of --trained-model that no right row of any share has."""
    named = shares[0].settings.get("trained_model")
    if named and not any(share.summary["right_rows_of_trained_model"] for share in shares):
        raise UserError(
            f"--trained-model: no row of --correct is by {named!r} in any share; merge all shares "
            "anew with a name that the rows have"
        )
