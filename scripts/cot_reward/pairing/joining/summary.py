"""The summary and the lists of all shares together."""

import heapq
from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any

from cot_reward.errors import UserError
from cot_reward.pairing.joining.files import input_files
from cot_reward.pairing.joining.shares import Share, changed
from cot_reward.pairing.listings import LISTS
from cot_reward.pairing.rows_file import sha256_of
from cot_reward.rows.reading import read_rows

_SIDES = {"correct_side": "correct", "incorrect_side": "incorrect"}
_OF_SIDE = ("rows", "bad", "of_other_shares")
# Each comparison is in one share, so these are sums.
_SUMS = (
    "contradictory_comparisons", "excluded_comparisons", "same_pictures_as_excluded",
    "presentations", "pass_rates", "pairs", "comparisons", "chosen_answer", "chosen_longer",
    "rejected_longer", "same_model", "cross_model", "pair_kinds", "rejected_from_first_pass",
    "by_source", "pairs_before_balancing", "balancing", "right_rows_of_trained_model",
)  # fmt: skip


def _sum(values: Sequence[Any]) -> Any:
    """The sum of numbers, or of mappings name by name; None without numbers."""
    if isinstance(values[0], Mapping):
        names = sorted({name for value in values for name in value})
        return {name: _sum([value[name] for value in values if name in value]) for name in names}
    numbers = [value for value in values if value is not None]
    return sum(numbers) if numbers else None


def join_counts(shares: Sequence[Share]) -> dict[str, Any]:
    """What one merge would count: the account of all rows, the files, the pairs.

    Raises UserError for counts that do not add up.
    """
    files = input_files(shares)
    account = {}
    for side, name in _SIDES.items():
        of_side = [file for file in files if file.side == name]
        rows, bad = (sum(getattr(file, of) for file in of_side) for of in ("rows", "keyless_rows"))
        for file in of_side:
            bad -= sum(counts["without_key"] for _, counts in file.entries)
        fates: list[dict[str, int]] = []
        for share in shares:
            counts = share.summary[side]
            bad += counts.get("bad", 0)
            fates.append({fate: n for fate, n in counts.items() if fate not in _OF_SIDE})
        account[side] = {"rows": rows, **({"bad": bad} if bad else {}), **_sum(fates)}
        if rows != sum(account[side].values()) - rows:
            raise UserError(
                f"--join: the summaries of the shares do not account for all {rows:,} rows of "
                f"--{name}: a summary.json was changed; merge its share anew"
            )
    hashes: dict[str, set[str]] = {}
    for share in shares:
        for task, found in share.summary["template_hashes"].items():
            hashes.setdefault(task, set()).update(found)
    return {
        **account,
        "files": [file.summary() for file in files],
        **{name: _sum([share.summary[name] for share in shares]) for name in _SUMS},
        "template_hashes": {task: sorted(found) for task, found in sorted(hashes.items())},
    }


def check_lists(shares: Sequence[Share]) -> None:
    """Raise UserError for a list that is not as its merge left it."""
    for share in shares:
        for name in LISTS:
            if sha256_of(share.folder / name) != share.summary["sha256"].get(name, ""):
                raise UserError(changed(share.folder / name))


def _list(share: Share, name: str) -> Iterator[dict[str, Any]]:
    path = share.folder / name
    if not path.exists():
        return
    for line, row in read_rows(path):
        if not isinstance(row, dict):
            raise UserError(f"{path}:{line}: is not a row of its merge; copy the file again")
        yield row


def bad_rows(shares: Sequence[Share]) -> Iterator[dict[str, Any]]:
    """The rows of all bad_rows.jsonl, by file and line; one that several shares list comes once."""
    # A file may be on one side only.
    places = {
        (share.shard.number, file.path): place
        for place, file in enumerate(input_files(shares))
        for share, _ in file.entries
    }
    found: dict[tuple[int, int], dict[str, Any]] = {}
    for share in shares:
        for row in _list(share, LISTS[0]):
            place = places[share.shard.number, row["file"]]
            found.setdefault((place, row["line"]), row)
    yield from (found[place] for place in sorted(found))


def contradictory_labels(shares: Sequence[Share]) -> Iterator[dict[str, Any]]:
    """The rows of all contradictory_labels.jsonl, by key."""
    return heapq.merge(*(_list(share, LISTS[1]) for share in shares), key=itemgetter("id"))
