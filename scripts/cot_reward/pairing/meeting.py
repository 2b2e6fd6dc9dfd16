"""Whether the two sides of a merge are about the same comparisons, and whose texts they are."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from cot_reward.errors import UserError, nearest
from cot_reward.pairing.engine.database import Engine
from cot_reward.pairing.engine.scan import (
    PART_OF_ROW,
    ScannedPart,
    count_by_file,
    rows_by_file,
)
from cot_reward.pairing.settings import PairFrom
from cot_reward.rows.shards import Shard

_NEEDS_TRAINED_MODEL = ("published", "both")


def count_shared(engine: Engine, scanned: Sequence[ScannedPart]) -> list[dict[str, Any]]:
    """For each input file: its side, its comparisons, and how many the other side has as well.

    With the file's size and rows, by which shares of the comparisons can be seen to be complete.
    """
    engine.add("files", rows_by_file(scanned))
    rows = engine.run(f"""
        WITH members AS (
            SELECT DISTINCT file, right_side, comparison
            FROM facts JOIN files ON files.part = {PART_OF_ROW}),
        sides AS (SELECT DISTINCT right_side, comparison FROM members)
        SELECT files.file, any_value(path), any_value(on_right_side),
            count(DISTINCT members.comparison),
            count(DISTINCT members.comparison) FILTER (other.comparison IS NOT NULL)
        FROM files LEFT JOIN members USING (file)
        LEFT JOIN sides AS other ON other.comparison = members.comparison
            AND other.right_side <> members.right_side
        GROUP BY files.file ORDER BY files.file""")
    counts = count_by_file(scanned)
    return [
        {
            "file": path,
            "side": "correct" if right_side else "incorrect",
            "comparisons": comparisons,
            "shared": shared,
            **counts[path, right_side],
        }
        for _, path, right_side, comparisons, shared in rows
    ]


def unmet(files: Sequence[dict[str, Any]]) -> list[str]:
    """A warning for each file whose comparisons the other side does not have at all."""
    return [
        f"warning: 0 of {entry['comparisons']:,} comparisons of {entry['file']} are on the other "
        "side; were both passes over the same data?"
        for entry in files
        if entry["comparisons"] and not entry["shared"]
    ]


class TrainedModel(NamedTuple):
    """The model that is trained next (None: not known), how many right rows are by it, a note."""

    name: str | None
    right_rows: int | None
    note: str = ""


def trained_model(
    engine: Engine, named: str | None, pair_from: PairFrom, share: Shard | None
) -> TrainedModel:
    """The named model, or the only one with right texts.

    None when several models have right texts and `pair_from` does not need one of them. Raises
    UserError for a name that no row has, and when one is needed. Of a `share` a name without a row
    is natural: the note says so, and putting the shares together adds the rows up.
    """
    models = dict(
        engine.run(
            "SELECT model, count(*) FROM facts WHERE right_side AND model <> '' "
            "GROUP BY model ORDER BY model"
        )
    )
    if named is not None:
        if named in models:
            return TrainedModel(named, models[named])
        told = f"no row of --correct is by {named!r}"
        known = f"there are {', '.join(map(repr, models)) or 'none'}.{nearest(named, models)}"
        if share is None:
            raise UserError(f"--trained-model: {told}; {known}")
        return TrainedModel(named, 0, f"note: --trained-model: in share {share} {told}; {known}")
    if len(models) == 1:
        return TrainedModel(*next(iter(models.items())))
    if pair_from in _NEEDS_TRAINED_MODEL:
        counts = ", ".join(f"{name!r} ({count} rows)" for name, count in models.items())
        raise UserError(
            f"--pair-from {pair_from} needs the model that is trained next, and --correct has "
            f"{counts or 'no row that names its model'}; name it with --trained-model"
        )
    return TrainedModel(None, None)
