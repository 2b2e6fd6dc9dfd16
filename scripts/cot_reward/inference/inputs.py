"""Read the labelled comparisons of a run from its input files."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from cot_reward.errors import UserError
from cot_reward.inference.ledger import Ledger
from cot_reward.media.paths import prefix_of
from cot_reward.records import Comparison, valid_unicode
from cot_reward.rows.adapters import adapter_for
from cot_reward.rows.reading import STDIN, read_rows
from cot_reward.tasks import TASKS


def read_pool(
    ledger: Ledger,
    files: Sequence[Path],
    media_root: Path,
    image_root: Path | None = None,
    source: str | None = None,
    task: str | None = None,
    limit: int | None = None,
    check: Callable[[Comparison], object] = lambda comparison: None,
) -> None:
    """List all comparisons of the files. A bad record costs only itself and is listed as such.

    `task` is the task of records that do not name theirs; one that is of another is bad, and so is
    one for which `check` raises ValueError. Raises UserError for a missing file, an unknown
    `source` or `task`, or when nothing can be used.
    """
    prefix = prefix_of(image_root or media_root, media_root)
    if source is not None:
        adapter_for({}, source)  # an unknown name is an error of its own
    if task is not None and task not in TASKS:
        raise UserError(f"unknown --task '{task}'; known: {', '.join(TASKS)}")
    first_bad = ""
    for path in files:
        if limit is not None and len(ledger) >= limit:
            break
        adapter, name = None, valid_unicode(_source(path, media_root))
        for number, row in read_rows(path):
            if limit is not None and len(ledger) >= limit:
                break
            where = f"{path}:{number}"
            try:
                if isinstance(row, ValueError):
                    raise row
                if task is not None:
                    row.setdefault("task", task)
                adapter = adapter or adapter_for(row, source)
                comparison = replace(adapter(row, prefix), source=name)
                if task not in (None, comparison.task):
                    raise ValueError(f"a record of task {comparison.task}, not of --task {task}")
                check(comparison)
            except (ValueError, UserError, LookupError, TypeError, AttributeError) as error:
                # An adapter trusts the form of a row; whatever it stumbles over costs that row.
                told = isinstance(error, ValueError | UserError)
                detail = str(error) if told else f"not of the adapter's form: {error!r}"
                ledger.add_bad(where, getattr(error, "reason", "bad_record"), detail)
                first_bad = first_bad or f"; the first: {where}: {detail}"
                continue
            ledger.add(comparison, where)
    ledger.drop_conflicts()
    if not len(ledger):
        raise UserError(f"{files[0]}: no usable comparison, {ledger.bad_count} bad{first_bad}")


def _source(path: Path, media_root: Path) -> str:
    """The data set's name in rows: its path below the media root, without its ending."""
    if path == STDIN:
        return "stdin"
    absolute, root = path.resolve(), media_root.resolve()
    below = absolute.relative_to(root) if absolute.is_relative_to(root) else Path(path.name)
    return below.with_suffix("").as_posix()
