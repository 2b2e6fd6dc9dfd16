"""The summary and the lists of all shares together."""

import heapq
from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any

from cot_reward.errors import UserError
from cot_reward.pairing.joining.shares import File, Share, input_files
from cot_reward.pairing.listings import LISTS
from cot_reward.rows.reading import read_rows

_SIDES = {"correct_side": "correct", "incorrect_side": "incorrect"}
_OF_SIDE = ("rows", "bad", "of_other_shares")
# Each comparison is in one share, so these are sums.
_SUMS = (
    "contradictory_comparisons", "excluded_comparisons", "same_pictures_as_excluded",
    "presentations", "pass_rates", "pairs", "comparisons", "chosen_answer", "chosen_longer",
    "rejected_longer", "same_model", "cross_model", "pair_kinds", "rejected_from_first_pass",
    "by_source", "pairs_before_balancing", "balancing",
)  # fmt: skip


def _sum(values: Sequence[Any]) -> Any:
    """The sum of numbers, or of mappings name by name; None without numbers."""
    if isinstance(values[0], Mapping):
        names = sorted({name for value in values for name in value})
        return {name: _sum([value[name] for value in values if name in value]) for name in names}
    numbers = [value for value in values if value is not None]
    return sum(numbers) if numbers else None


def join_counts(shares: Sequence[Share]) -> dict[str, Any]:
    """What one merge would count: the account of all rows, the files, the pairs."""
    files = input_files(shares)
    account = {}
    for side, name in _SIDES.items():
        of_side = [counts for file, counts in files.items() if file[2] == name]
        rows, keyless = (sum(counts[of] for counts in of_side) for of in ("rows", "without_key"))
        bad = keyless
        fates: list[dict[str, int]] = []
        for share in shares:
            counts = share.summary[side]
            bad += counts.get("bad", 0)
            bad -= sum(entry["without_key"] for file, entry in share.files() if file[2] == name)
            fates.append({fate: n for fate, n in counts.items() if fate not in _OF_SIDE})
        account[side] = {"rows": rows, **({"bad": bad} if bad else {}), **_sum(fates)}
        assert rows == sum(account[side].values()) - rows, account[side]
    hashes: dict[str, set[str]] = {}
    for share in shares:
        for task, found in share.summary["template_hashes"].items():
            hashes.setdefault(task, set()).update(found)
    return {
        **account,
        "files": [_file(file, shares) for file in files],
        **{name: _sum([share.summary[name] for share in shares]) for name in _SUMS},
        "template_hashes": {task: sorted(found) for task, found in sorted(hashes.items())},
    }


def _file(file: File, shares: Sequence[Share]) -> dict[str, Any]:
    """What one merge would say of an input file."""
    path, size, side = file
    found = [entry for share in shares for of, entry in share.files() if of == file]
    comparisons, shared = (sum(entry[of] for entry in found) for of in ("comparisons", "shared"))
    return {
        "file": path, "side": side, "comparisons": comparisons, "shared": shared, "bytes": size,
        "rows": found[0]["rows"],
    }  # fmt: skip


def check_lists(shares: Sequence[Share]) -> None:
    """Raise UserError for a list that has not as many rows as its summary says."""
    for share in shares:
        bad = sum(share.summary[side].get("bad", 0) for side in _SIDES)
        of_labels = share.summary["contradictory_comparisons"]
        for name, wanted in zip(LISTS, (bad, of_labels), strict=True):
            if (rows := sum(1 for _ in _list(share, name))) != wanted:
                raise UserError(
                    f"{share.folder / name}: has {rows:,} rows, but {wanted:,} in its "
                    "summary.json; copy the file again"
                )


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
    places = {file: number for number, file in enumerate(input_files(shares))}
    found: dict[tuple[int, int], dict[str, Any]] = {}
    for share in shares:
        # A file may be on one side only.
        number_of = {file[0]: places[file] for file, _ in share.files()}
        for row in _list(share, LISTS[0]):
            found.setdefault((number_of[row["file"]], row["line"]), row)
    yield from (found[place] for place in sorted(found))


def contradictory_labels(shares: Sequence[Share]) -> Iterator[dict[str, Any]]:
    """The rows of all contradictory_labels.jsonl, by key."""
    return heapq.merge(*(_list(share, LISTS[1]) for share in shares), key=itemgetter("id"))
