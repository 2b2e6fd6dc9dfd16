"""The items of a benchmark in a run folder, and the questions that the client asks about them."""

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cot_reward.errors import UserError
from cot_reward.evaluation.benchmarks.form import TIE, Benchmark, Found
from cot_reward.evaluation.items import ITEMS, Item, write_items
from cot_reward.evaluation.settings import BenchmarkSettings
from cot_reward.media.images import MAX_PIXELS
from cot_reward.media.paths import MediaError, media_prefix, resolve
from cot_reward.preparing.comparisons import RowCounts, labelled, words_of
from cot_reward.preparing.raw_comparisons import comparison_of
from cot_reward.preparing.settings import ComparisonFiles
from cot_reward.preparing.shown_media import MediaFiles
from cot_reward.preparing.tables import read_table
from cot_reward.records import Comparison
from cot_reward.rows.adapters.comparison import plain_row
from cot_reward.rows.reading import NOT_AN_OBJECT, Row
from cot_reward.store import dump, read_json, write_json, write_jsonl
from cot_reward.tasks.prompts import shown_media

# In the folder of a benchmark run.
MANIFEST = "benchmark.json"
QUESTIONS = "questions.jsonl"
BAD_ITEMS = "bad_items.jsonl"
_BAD_SHOWN = 5


def prepare(
    benchmark: Benchmark, settings: BenchmarkSettings, media_root: Path, image_root: Path | None,
    out: Path, limit: int | None = None,
) -> Path:  # fmt: skip
    """Write items, questions and a manifest into `out`; returns the file of the questions.

    `limit`: the first items alone, which the manifest tells. Raises UserError for rows that are not
    the benchmark's, for bad rows (unless `allow_bad_items`), and when `out` holds other items.
    """
    split = settings.split or next(iter(benchmark.rows))
    prefix = media_prefix(image_root or media_root, media_root)
    files = MediaFiles(media_root, prefix, settings.frames, MAX_PIXELS)
    found: list[tuple[Found, Comparison]] = []
    bad: list[dict[str, str]] = []
    counts: Counter[str] = Counter()
    for where, number, row in _rows(benchmark, settings, split):
        counts["rows"] += 1
        try:
            if isinstance(row, ValueError):
                raise row
            item = benchmark.find(row, number)
            if item is None:
                counts["no_items"] += 1
                continue
            if limit is not None and len(found) >= limit:
                counts["beyond_limit"] += 1
                continue
            found.append((item, comparison_of(item.raw(), benchmark.task, files)))
        except (ValueError, MediaError) as error:
            bad.append({"where": where, "reason": str(error)})
    _check(benchmark, settings, split, counts["rows"], bad, out)
    counts |= {"bad_items": len(bad), "published_rows": benchmark.rows[split]}
    return _write(benchmark.name, split, found, counts, media_root, out)


def prepare_rows(files: ComparisonFiles, out: Path, limit: int | None = None) -> Path:
    """As `prepare`, for labelled comparisons of any form that the client reads."""
    counts = RowCounts()
    bad: list[dict[str, str]] = []
    found: list[tuple[Found, Comparison]] = []
    for source, where, comparison in labelled(
        files, counts, lambda where, why: bad.append({"where": where, "reason": why})
    ):
        if limit is not None and len(found) >= limit:
            break
        group = files.files[source].stem if len(files.files) > 1 else comparison.task
        first, second = comparison.candidates
        # The folder of a file is no part of an item's name: it may be another one elsewhere.
        number = where.rpartition(":")[2]
        item = Found(
            f"{files.files[source].name}:{number}", group, comparison.label, comparison.text,
            (first, second), comparison.context,
        )  # fmt: skip
        found.append((item, comparison))
    if bad:
        raise UserError(f"{bad[0]['where']}: {bad[0]['reason']}; {len(bad):,} rows are bad")
    counted = Counter({"rows": counts.rows, "ties": counts.ties})
    return _write("rows", "", found, counted, files.media_root, out)


def _rows(
    benchmark: Benchmark, settings: BenchmarkSettings, split: str
) -> Iterator[tuple[str, int, Mapping[str, Any] | ValueError]]:
    """Place, number from 1, and row: of local files, or by name through `datasets`."""
    number = 0
    if not settings.snapshot:
        for number, published in enumerate(_from_hub(benchmark, split), 1):
            yield f"{benchmark.repository} {split}:{number}", number, published
        return
    for file in _files(settings.snapshot, benchmark.files):
        rows = _listed(file, benchmark.rows_key) if benchmark.rows_key else read_table(file)
        for at, row in tqdm(rows, file.name, unit=" rows", disable=None):
            number += 1
            yield f"{file}:{at}", number, row


def _listed(file: Path, key: str) -> Iterator[tuple[int, Row]]:
    """The rows of a file that is one JSON object with a list of them. Raises UserError."""
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))[key]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"{file}: no JSON object with a list '{key}' ({error})") from None
    for number, row in enumerate(rows, 1):
        yield number, row if isinstance(row, dict) else ValueError(NOT_AN_OBJECT)


def _files(snapshot: Sequence[Path], patterns: Sequence[str]) -> list[Path]:
    """The files that are named, and those of the first pattern that finds some in a folder."""
    found: list[Path] = []
    for path in snapshot:
        if not path.is_dir():
            found.append(path)
            continue
        of_folder = next(
            (files for pattern in patterns if (files := sorted(path.rglob(pattern)))), []
        )
        if not of_folder:
            raise UserError(f"{path}: no file {' or '.join(patterns)} in it; name the files")
        found += of_folder
    return found


def _from_hub(benchmark: Benchmark, split: str) -> Iterator[Mapping[str, Any]]:
    from datasets import Image, Sequence, Video, load_dataset

    try:
        table = load_dataset(benchmark.repository, benchmark.configuration, split=split)
    except Exception as error:
        # The library raises errors of many kinds, and each of them ends this run.
        raise UserError(
            f"{benchmark.repository} cannot be loaded ({error}); name its files with --snapshot"
        ) from None
    # Media as they were published, not decoded and written again.
    for name, feature in table.features.items():
        if isinstance(feature, Image | Video):
            table = table.cast_column(name, type(feature)(decode=False))
        elif isinstance(feature, Sequence) and isinstance(feature.feature, Image):
            table = table.cast_column(name, Sequence(Image(decode=False)))
    yield from table


def _check(
    benchmark: Benchmark, settings: BenchmarkSettings, split: str, rows: int,
    bad: Sequence[Mapping[str, str]], out: Path,
) -> None:  # fmt: skip
    wanted = benchmark.rows.get(split)
    if wanted is None:
        raise UserError(f"--split {split}: {benchmark.name} has {', '.join(benchmark.rows)}")
    # Of some splits the number is not known.
    if wanted and rows != wanted and not settings.any_rows:
        raise UserError(
            f"{rows:,} rows, and {benchmark.name} {split} is published with {wanted:,}: other "
            "files, another split, or a new version? --any-rows goes on, and says so beside the "
            "scores"
        )
    if bad:
        out.mkdir(parents=True, exist_ok=True)
        write_jsonl(out / BAD_ITEMS, (dict(entry) for entry in bad))
        for entry in bad[:_BAD_SHOWN]:
            print(f"bad item: {entry['where']}: {entry['reason']}", file=sys.stderr)
        if not settings.allow_bad_items:
            raise UserError(
                f"{len(bad):,} of {rows:,} rows of {benchmark.name} cannot be used, listed in "
                f"{out / BAD_ITEMS}; a score without them is another score, which "
                "--allow-bad-items accepts"
            )


def _items(found: Sequence[tuple[Found, Comparison]]) -> list[Item]:
    """The items; of those with one key the first is asked about."""
    asked: dict[str, tuple[Any, int]] = {}
    items = []
    for item, comparison in found:
        key, own_first = comparison.key, comparison.candidates[0]
        first, label = asked.setdefault(key, (own_first, comparison.label))
        context = comparison.context
        # Questions about one medium, and media of one caption, are not independent.
        cluster = context[0] if context else words_of(comparison.text)
        items.append(Item(
            item.name, key, item.group, cluster, item.better,
            label if own_first == first else 3 - label,
            comparison.text, plain_row(comparison)["candidates"], list(context),
        ))  # fmt: skip
    return items


def _write(
    name: str, split: str, found: Sequence[tuple[Found, Comparison]], counts: Mapping[str, int],
    media_root: Path, out: Path,
) -> Path:  # fmt: skip
    items = _items(found)
    if not items:
        raise UserError(f"{name}: no item in {counts['rows']:,} rows")
    names = Counter(item.name for item in items)
    if twice := next((name for name, count in names.items() if count > 1), None):
        raise UserError(f"{name}: two items are called {twice!r:.80}")
    manifest = {
        "benchmark": name, "split": split, **counts, "items": len(items),
        "ties_of_items": sum(item.better == TIE for item in items),
        "content": _content(items, [comparison for _, comparison in found], media_root),
    }  # fmt: skip
    if (out / MANIFEST).exists() and read_json(out / MANIFEST) != manifest:
        raise UserError(
            f"{out}: holds another benchmark, or other rows or media of this one; name another "
            "--out"
        )
    out.mkdir(parents=True, exist_ok=True)
    write_items(out / ITEMS, items)
    unique: dict[str, Comparison] = {}
    for item, (_, comparison) in zip(items, found, strict=True):
        unique.setdefault(item.key, comparison)
    write_jsonl(out / QUESTIONS, map(plain_row, unique.values()))
    write_json(out / MANIFEST, manifest)
    return out / QUESTIONS


def _content(items: Sequence[Item], comparisons: Sequence[Comparison], media_root: Path) -> str:
    """What stands for the items and the bytes of their media: sha256, 64 hexadecimal digits.

    Raises UserError for a medium that is missing.
    """
    digest = hashlib.sha256()
    contents: dict[str, bytes] = {}
    for item, comparison in zip(items, comparisons, strict=True):
        digest.update(dump(asdict(item)).encode())
        for path in shown_media(comparison, "given"):
            if path not in contents:
                try:
                    with resolve(path, media_root).open("rb") as file:
                        contents[path] = hashlib.file_digest(file, "sha256").digest()
                except (MediaError, OSError) as error:
                    raise UserError(f"{item.name}: {error}") from None
            digest.update(contents[path])
    return digest.hexdigest()
