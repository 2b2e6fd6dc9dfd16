"""The pairs of all shares in one file, in the order of one merge."""

import heapq
from collections.abc import Iterator, Sequence
from hashlib import md5, sha256
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from cot_reward.errors import UserError
from cot_reward.judge import judge
from cot_reward.pairing.joining.shares import Share, changed
from cot_reward.pairing.output import SHORTCUT_PAIRS, line_in
from cot_reward.pairing.pairs import kind_of
from cot_reward.pairing.rows_file import RowsFile
from cot_reward.pairing.shortcut import Texts
from cot_reward.records import PAIR_FIELDS
from cot_reward.rows.preference_forms import WrittenForm
from cot_reward.rows.validation import check_task, check_types, form_of
from cot_reward.tasks import TASKS

# More comparisons cannot lead a file: one for each kind of media (images, videos, both, none).
_MOST_LEADING = 4


class Line(NamedTuple):
    """A row of train.jsonl. `filled`: its lists of media that are not empty."""

    id: str
    filled: tuple[str, ...]
    kind: str
    data: bytes


def _lines(share: Share, trained: str | None) -> Iterator[Line]:
    path = share.folder / "train.jsonl"
    rows, digest = 0, sha256()
    try:
        with path.open("rb") as file:
            for data in file:
                rows += 1
                digest.update(data)
                row = orjson.loads(data)
                _check_row(row)
                if not share.shard.holds(row["id"]):
                    raise ValueError(f"its comparison is not of share {share.shard}")
                filled = tuple(name for name in ("images", "videos") if row[name])
                kind = kind_of(row["chosen_model"], row["rejected_model"], trained)
                yield Line(row["id"], filled, kind, data)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path}:{rows}: is not a row of its merge: {error}") from None
    if rows != share.summary["pairs"]:
        raise UserError(
            f"{path}: has {rows:,} rows, but {share.summary['pairs']:,} in its summary.json; copy "
            "the file again"
        )
    if digest.hexdigest() != share.summary["sha256"].get(path.name):
        raise UserError(changed(path))


def _check_row(row: Any) -> None:
    """Raise ValueError for what is no row of ours, as far as writing and counting it need."""
    if missing := PAIR_FIELDS.keys() - row.keys():
        raise ValueError(f"it has no '{min(missing)}'")
    check_types(row, PAIR_FIELDS)
    check_task(row["task"])


def _ascending(share: Share, lines: Iterator[Line]) -> Iterator[Line]:
    last = ""
    for line in lines:
        if line.id < last:
            raise UserError(
                f"{share.folder / 'train.jsonl'}: its rows are not in the order that its merge "
                "left them in; copy the file again"
            )
        last = line.id
        yield line


def _start(lines: Iterator[Line]) -> tuple[list[Line], list[Line]]:
    """The rows that lead a file out of turn, and the rows behind them that were read to see it."""
    start: list[Line] = []
    for line in lines:
        start.append(line)
        before = {entry.id for entry in start[:-1]}
        if before and line.id < start[-2].id:
            return start[:-1], [line]
        if len(before | {line.id}) > _MOST_LEADING + 1:
            break
    return [], start


class Sample:
    """The pairs that the shortcut classifiers of one merge would see (see `output.sample_texts`).

    For each kind of pairs, and for all ("").
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        # The entries with the smallest chances; a heap has the largest in front, so they are
        # negative.
        self._kept: dict[str, list[tuple[int, int, bytes]]] = {"": []}
        self._rows = 0

    def add(self, line: Line) -> None:
        chance = int(md5(f"{self._seed} sample {line.id}".encode()).hexdigest(), 16)
        entry = (-chance, -self._rows, line.data)
        self._rows += 1
        for kind in ("", line.kind):
            kept = self._kept.setdefault(kind, [])
            if len(kept) < SHORTCUT_PAIRS:
                heapq.heappush(kept, entry)
            elif entry > kept[0]:
                heapq.heapreplace(kept, entry)

    def texts(self) -> dict[str, list[Texts]]:
        """By kind, in the order of the rows."""
        return {
            kind: [_texts(data) for _, _, data in sorted(kept, key=lambda entry: -entry[1])]
            for kind, kept in self._kept.items()
        }


def _texts(data: bytes) -> Texts:
    row = orjson.loads(data)
    answer = judge(row["rejected"], TASKS[row["task"]], 1, "", form_of(row)).answer
    return Texts(row["id"], row["chosen"], row["rejected"], row["chosen_answer"], answer)


def write_rows(
    shares: Sequence[Share], path: Path, trained: str | None, form: WrittenForm, sample: Sample
) -> str:
    """Write the rows of all shares in the order of one merge; the sample sees each of them.

    Returns the sha256 of the file, which is safe on the disk then. Raises UserError for a
    train.jsonl that is not as its merge left it, which may be seen at its end only.
    """
    starts: list[Line] = []
    streams: list[Iterator[Line]] = []
    for share in shares:
        lines = _lines(share, trained)
        first, rest = _start(lines)
        starts += first + rest
        streams += [iter(first), _ascending(share, chain(rest, lines))]
    # The first comparison of each kind of media is among these.
    of_kind: dict[tuple[str, ...], str] = {}
    for line in starts:
        of_kind[line.filled] = min(of_kind.get(line.filled, line.id), line.id)
    leading = set(of_kind.values()) if len(of_kind) > 1 else set()
    with RowsFile(path) as file:
        for line in sorted(starts, key=lambda line: line.id):
            if line.id in leading:
                file.write(line_in(form, line.data))
        for line in heapq.merge(*streams, key=lambda line: line.id):
            sample.add(line)
            if line.id not in leading:
                file.write(line_in(form, line.data))
        return file.close()
