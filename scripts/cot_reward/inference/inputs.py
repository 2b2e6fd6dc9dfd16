"""Read the labelled comparisons of a run from its data files into its ledger."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from cot_reward.errors import UserError
from cot_reward.inference.ledger import Ledger
from cot_reward.media.paths import media_prefix
from cot_reward.records import Comparison, valid_unicode
from cot_reward.rows.adapters import adapter_for, is_judged
from cot_reward.rows.comparisons import ComparisonReader
from cot_reward.rows.held_out import HeldOut
from cot_reward.rows.labels import FileLabels, Meaning, TieError
from cot_reward.rows.reading import STDIN, read_rows
from cot_reward.rows.responses import pictures_digest
from cot_reward.rows.shards import Shard
from cot_reward.tasks import TASKS
from cot_reward.tasks.prompts import shown_media


def read_comparisons(
    ledger: Ledger,
    files: Sequence[Path],
    media_root: Path,
    image_roots: Sequence[Path] = (),
    adapter_name: str | None = None,
    task: str | None = None,
    limit: int | None = None,
    check: Callable[[Comparison], object] = lambda comparison: None,
    templates: Mapping[str, str] | None = None,
    label_meanings: Mapping[str, Meaning] | None = None,
    held_out: HeldOut | None = None,
    shard: Shard | None = None,
) -> None:
    """List all comparisons of the files. A bad record is listed as bad and costs only itself.

    `image_roots`: one for all files, one for each, or none (the media root). Files of judged rows
    have their media below the media root, keep the `source` of their rows, and name a comparison
    many times; `templates` (task -> template) help to read their prompts. A comparison of
    `held_out` is only counted.

    `task` is the task of records that do not name one. A record of another task is bad, and so is
    a record for which `check` raises ValueError. A record whose label means a tie is only counted.
    Raises UserError for a missing file, an unknown adapter, task or label, and when no record can
    be used. `label_meanings` says what the labels of raw data mean (default:
    the adapter's own). `shard` lists its own comparisons, and its part of the records that name
    none; records of other shares are only counted. It may have no comparison.
    """
    prefixes = [media_prefix(root, media_root) for root in image_roots or [media_root]]
    if len(prefixes) == 1:
        prefixes *= len(files)
    if adapter_name is not None:
        # An unknown name is the user's mistake, and not that of the first record.
        adapter_for({}, adapter_name)
    if task is not None and task not in TASKS:
        raise UserError(f"unknown --task '{task}'; known: {', '.join(TASKS)}")
    first_bad, excluded = "", 0
    for path, prefix in zip(files, prefixes, strict=True):
        if limit is not None and len(ledger) >= limit:
            break
        data_set = valid_unicode(_data_set_name(path, media_root))
        labels = FileLabels(label_meanings)
        reader = ComparisonReader(prefix, labels, task, adapter_name, templates)
        for number, row in read_rows(path):
            if limit is not None and len(ledger) >= limit:
                break
            where = f"{path}:{number}"
            # A bad record has no key to tell its share by.
            is_of_share = shard is None or number % shard.count == shard.number % shard.count
            try:
                if isinstance(row, ValueError):
                    raise row
                comparison = reader.comparison(row)
                judged = is_judged(row)
                if not (judged and comparison.source):
                    comparison = replace(comparison, source=data_set)
                check(comparison)
            except TieError:
                ledger.record_count += is_of_share
                ledger.tie_count += is_of_share
                ledger.other_records += not is_of_share
                continue
            except (ValueError, UserError) as error:
                if not is_of_share:
                    ledger.other_records += 1
                    ledger.other_bad += 1
                    continue
                ledger.record_count += 1
                ledger.add_bad(where, getattr(error, "reason", "bad_record"), str(error))
                first_bad = first_bad or f"; the first: {where}: {error}"
                continue
            if shard and not shard.holds(comparison.key):
                ledger.other_records += 1
                ledger.other_usable += 1
                continue
            ledger.record_count += 1
            if held_out and held_out.look_up([comparison.key], _pictures(comparison)):
                excluded += 1
                continue
            ledger.add(comparison, where, again=judged)
        labels.check(path)
    ledger.drop_conflicts()
    # Of few comparisons a share may have none; it is a share all the same.
    if not len(ledger) and not ledger.other_usable:
        raise UserError(
            f"{files[0]}: no usable comparison, "
            f"{ledger.bad_count} bad"
            f"{f', {ledger.tie_count} ties' if ledger.tie_count else ''}"
            f"{f', {excluded} held out (--exclude)' if excluded else ''}"
            f" of {ledger.record_count} records{first_bad}"
        )


def _pictures(comparison: Comparison) -> list[int]:
    """The digest of the media that a comparison compares; empty where it compares texts."""
    if not TASKS[comparison.task].compares_media:
        return []
    return [pictures_digest(shown_media(comparison, "given"))]


def _data_set_name(path: Path, media_root: Path) -> str:
    """The `source` of rows: the file's path below the media root, without its ending."""
    if path == STDIN:
        return "stdin"
    absolute, root = path.resolve(), media_root.resolve()
    below = absolute.relative_to(root) if absolute.is_relative_to(root) else Path(path.name)
    return below.with_suffix("").as_posix()
