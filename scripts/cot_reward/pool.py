"""Read the labelled comparisons of a run from its input files."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cot_reward.records import Comparison
from cot_reward.settings import UserError
from cot_reward.sources import adapter_for, prefix_of
from cot_reward.store import read_rows


@dataclass
class Pool:
    """The comparisons of a run, by key, in input order, and the records that gave none."""

    comparisons: dict[str, Comparison] = field(default_factory=dict)
    position: dict[str, str] = field(default_factory=dict)
    bad: list[dict[str, Any]] = field(default_factory=list)
    duplicates: list[str] = field(default_factory=list)


def read_pool(
    files: Sequence[Path],
    media_root: Path,
    image_root: Path | None = None,
    source: str | None = None,
    limit: int | None = None,
) -> Pool:
    """All comparisons of the files. A bad record costs only itself and is listed.

    Raises UserError for a missing file, an unknown `source`, or when nothing can be used.
    """
    pool = Pool()
    conflicting: dict[str, str] = {}
    prefix = prefix_of(image_root or media_root, media_root)
    if source is not None:
        adapter_for({}, source)  # an unknown name is an error of its own
    for path in files:
        adapter, name = None, _source(path, media_root)
        for number, row in read_rows(path):
            if limit is not None and len(pool.comparisons) >= limit:
                break
            where = f"{path}:{number}"
            try:
                if isinstance(row, ValueError):
                    raise row
                adapter = adapter or adapter_for(row, source)
                comparison = replace(adapter(row, prefix), source=name)
            except (ValueError, UserError) as error:
                pool.bad.append(
                    {"id": "", "where": where, "reason": "bad_record", "detail": str(error)}
                )
                continue
            key = comparison.key
            known = pool.comparisons.setdefault(key, comparison)
            pool.position.setdefault(key, where)
            if known is comparison:
                continue
            pool.duplicates.append(where)
            # The same pair may come again in the other order, with the label turned around.
            if known.candidates[known.label - 1] != comparison.candidates[comparison.label - 1]:
                conflicting[key] = where
    for key, where in conflicting.items():
        del pool.comparisons[key]
        first = pool.position.pop(key)
        pool.bad.append({
            "id": key, "where": first, "reason": "conflicting_label",
            "detail": f"{where} has the same comparison with the other label",
        })  # fmt: skip
    if not pool.comparisons:
        first = f"; the first: {pool.bad[0]['where']}: {pool.bad[0]['detail']}" if pool.bad else ""
        raise UserError(f"{files[0]}: no usable comparison, {len(pool.bad)} bad{first}")
    return pool


def _source(path: Path, media_root: Path) -> str:
    """The data set's name in rows: its path below the media root, such as EvalMuse/train_data."""
    absolute, root = path.resolve(), media_root.resolve()
    below = absolute.relative_to(root) if absolute.is_relative_to(root) else Path(path.name)
    return below.with_suffix("").as_posix()
