"""Files of judged responses in, DPO pairs and an account of every row out."""

import glob
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import IO, Any

import duckdb
import orjson
import pyarrow as pa
from tqdm import tqdm

from cot_reward import judge
from cot_reward.errors import UserError
from cot_reward.media.paths import prefix_of
from cot_reward.pairing import held_out, shortcut
from cot_reward.pairing.audit import audit_rows
from cot_reward.pairing.balance import balance, take
from cot_reward.pairing.engine.database import Engine, workspace
from cot_reward.pairing.engine.match import FATES, PAIRS, batches_of, match
from cot_reward.pairing.engine.scan import Places, Seen, parts_of, scan
from cot_reward.pairing.engine.workers import Workers, cores
from cot_reward.pairing.pairs import Rules
from cot_reward.pairing.plots import PLOTS, draw
from cot_reward.pairing.settings import MergeSettings
from cot_reward.pairing.summary import (
    account_for_rows,
    count_presentations,
    no_pair_message,
    pass_rate_histogram,
    summarise_file,
)
from cot_reward.provenance import jsonable, versions
from cot_reward.rows.reading import Row, read_rows
from cot_reward.store import write_json, write_jsonl
from cot_reward.tasks.prompts import mixed_templates

# Below this many bytes of input further processes take longer to start than they save.
_WORTH_PROCESSES = 2**25
# Batches of pairs that go into the database at once.
_TOGETHER = 32
# Threads of the engine at most: each needs its share of the memory, and scanning is the work.
_THREADS = 4
# Pairs that the classifiers see at most: above some thousands accuracies hardly move.
_SAMPLE = 4000
_PACKAGES = ("duckdb", "pyarrow", "orjson", "rapidfuzz", "scipy", "scikit-learn")
# How many bad rows and contradictory comparisons the summary itself names.
_NAMED = 100


def _files(patterns: list[str], flag: str) -> list[Path]:
    paths: list[Path] = []
    for pattern in patterns:
        if "\0" in pattern:
            raise UserError(f"{flag} {pattern!r}: no name of a file")
        # A name may look like a pattern.
        is_pattern = glob.has_magic(pattern) and not Path(pattern).exists()
        found = sorted(glob.glob(pattern, recursive=True)) if is_pattern else [pattern]
        if not found:
            raise UserError(f"{flag} {pattern}: no file matches")
        paths += map(Path, found)
    return list(dict.fromkeys(paths))


def _scan(
    settings: MergeSettings, prefix: str, folder: Path, stack: ExitStack
) -> tuple[list[Seen], Workers]:
    """Judge all rows into shards in the folder. Raises UserError when too many are bad."""
    files = [(path, True) for path in _files(settings.correct, "--correct")]
    files += [(path, False) for path in _files(settings.incorrect, "--incorrect")]
    parts = parts_of(files, folder, prefix, settings)
    sizes = [path.stat().st_size for path, _ in files if path.is_file()]
    alone = sum(sizes) < _WORTH_PROCESSES or len(sizes) < len(files)
    workers = stack.enter_context(Workers(1 if alone else settings.workers or cores()))
    seen = []
    with tqdm(desc="rows judged", unit=" rows", disable=None) as bar:
        for one in workers.map(scan, parts):
            seen.append(one)
            bar.update(one.rows)
    rows, bad = sum(one.rows for one in seen), sum(one.bad for one in seen)
    if rows and bad / rows > settings.max_bad_rows:
        first = [f"{where}: {reason}" for where, reason, _ in islice(_bad_rows(seen, folder), 10)]
        raise UserError(
            f"{bad} of {rows} rows are bad, more than --max-bad-rows {settings.max_bad_rows} "
            "allows; the first:\n  " + "\n  ".join(first)
        )
    return seen, workers


def _bad_rows(seen: list[Seen], folder: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Where each bad row is, why it is one, and its entry in bad_rows.jsonl."""
    places = Places(seen)
    for one in seen:
        if one.bad:
            for number, entry in read_rows(folder / f"bad-{one.part.number:06}.jsonl"):
                assert not isinstance(entry, ValueError), number
                path, line = places.of(one.part.number, entry["line"])
                reason = entry["reason"]
                yield f"{path}:{line}", reason, {"file": path, "line": line, "reason": reason}


def _match(
    settings: MergeSettings, engine: Engine, buckets: int, folder: Path, workers: Workers
) -> None:
    """Fill the tables `possible` (pairs) and `fates` (of rows in none)."""
    rules = Rules(
        settings.pairs_per_comparison, settings.select, settings.same_model,
        settings.max_similarity, settings.seed, "incoherent" in settings.rejected_kinds,
        settings.chosen_uses, settings.rejected_uses, settings.balance_lengths,
    )  # fmt: skip
    engine.add("possible", PAIRS.empty_table())
    engine.add("fates", FATES.empty_table())
    total, reader = engine.partners(buckets)
    held: dict[str, list[pa.Table]] = {"possible": [], "fates": []}

    def flush() -> None:
        for name, tables in held.items():
            if tables:
                engine.add(name, pa.concat_tables(tables))
                tables.clear()

    with tqdm(total=total, desc="rows paired", unit=" rows", disable=None) as bar:
        for rows, *streams in workers.map(match, batches_of(reader, folder, rules)):
            for name, stream in zip(held, streams, strict=True):
                with pa.ipc.open_stream(stream) as opened:
                    held[name].append(opened.read_all())
            # Together: each insertion takes some milliseconds, however few rows it has.
            if len(held["possible"]) >= _TOGETHER:
                flush()
            bar.update(rows)
    flush()


class _Lines:
    """The DPO rows that `match` wrote, by where they are; files are read from front to back."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._batch = folder, -1
        self._file: IO[bytes] | None = None

    def at(self, batch: int, start: int, length: int) -> bytes:
        if batch != self._batch or self._file is None:
            self.close()
            self._file = (self._folder / f"lines-{batch:06}.jsonl").open("rb")
            self._batch = batch
        self._file.seek(start)
        return self._file.read(length)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _write(settings: MergeSettings, engine: Engine, folder: Path) -> None:
    """Replace train.jsonl (and eval.jsonl) by whole files; from then on the old summary is gone."""
    out, lines = settings.out, _Lines(folder)
    names = ["train", "eval"] if settings.eval_fraction else ["train"]
    with ExitStack() as stack:
        stack.callback(lines.close)
        files = {name: stack.enter_context((folder / name).open("wb")) for name in names}
        # Pairs of one presentation are neighbours, so that a trainer can share their prompt.
        cursor = engine.database.cursor().execute(
            "SELECT split, batch, start, length FROM pairs WHERE state < '3' "
            "ORDER BY id, presentation, nth"
        )
        while rows := cursor.fetchmany(10_000):
            for split, batch, start, length in rows:
                files[split].write(lines.at(batch, start, length))
        for file in files.values():
            file.flush()
            os.fsync(file.fileno())
    for name in names:
        if (out / f"{name}.jsonl").is_dir():
            raise UserError(f"{out / name}.jsonl: is a folder")
    # Both are safe on the disk: nothing is left that could fail half-way. An evaluation file never
    # lies beside rows that it was not split from.
    for name in ("summary.json", "eval.jsonl"):
        (out / name).unlink(missing_ok=True)
    for name in names:
        os.replace(folder / name, out / f"{name}.jsonl")


def _listed(path: Path, rows: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
    """Write the rows to a file of their own, if there are any; the first of them."""
    first: list[dict[str, Any]] = []

    def counted() -> Iterator[dict[str, Any]]:
        for row in rows:
            if len(first) < _NAMED:
                first.append(row)
            yield row

    write_jsonl(path, counted())
    if not first:
        path.unlink()
    return first


def _sample(engine: Engine, folder: Path, seed: int) -> Iterator[tuple[int, Row]]:
    """Some of the pairs of train.jsonl, drawn by the seed."""
    lines = _Lines(folder)
    for number, place in enumerate(engine.run(
        "SELECT batch, start, length FROM (FROM pairs WHERE state < '3' AND split = 'train' "
        "ORDER BY md5($seed || ' sample ' || id), id, presentation, nth LIMIT $count) ORDER BY ALL",
        {"seed": str(seed), "count": _SAMPLE},
    )):  # fmt: skip
        yield number, orjson.loads(lines.at(*place))
    lines.close()


def merge(settings: MergeSettings) -> int:
    """Write train.jsonl and eval.jsonl, then summary.json; returns the exit code.

    Raises UserError; the files of an earlier merge stay as they were until the new rows are whole
    on the disk.
    """
    try:
        str(settings.out.resolve()).encode()
    except UnicodeEncodeError:
        raise UserError(f"--out {settings.out}: the name of the folder is not UTF-8") from None
    try:
        with workspace(settings.out) as folder:
            summary = _merge(settings, folder)
    except duckdb.Error as error:
        raise UserError(
            f"{settings.out}: the merge could not be finished: {str(error).splitlines()[0]}; see "
            "that its disk has room for twice the input, or change --memory"
        ) from None
    except OSError as error:
        raise UserError(
            f"{error.filename or settings.out}: the merge could not be finished: "
            # The engine's own errors come so while its rows are read.
            f"{error.strerror or str(error).partition(chr(10))[0]}"
        ) from None
    _tell(settings, summary)
    return 0


def _merge(settings: MergeSettings, folder: Path) -> dict[str, Any]:
    started, out = time.monotonic(), settings.out
    with ExitStack() as stack:
        threads = min(settings.workers or cores(), _THREADS)
        engine = stack.enter_context(Engine(folder, settings.memory, threads))
        prefix = prefix_of(settings.image_root or settings.media_root, settings.media_root)
        kept_apart = _files(settings.exclude, "--exclude")
        doubts = held_out.exclude(engine, kept_apart, settings.media_root, prefix)
        seen, workers = _scan(settings, prefix, folder, stack)
        low, high = settings.pass_rate or (0.0, 1.0)
        buckets = max((one.part.buckets for one in seen), default=1)
        engine.settle(buckets, low, high)
        excluded = held_out.met(engine, kept_apart)
        for warning in held_out.warnings(excluded, doubts):
            print(warning, file=sys.stderr)
        hashes = engine.template_hashes()
        if warning := mixed_templates(hashes):
            print(warning, file=sys.stderr)
        _match(settings, engine, buckets, folder, workers)
        count = None if settings.select == "all" else settings.pairs_per_comparison
        take(
            engine, count, settings.eval_fraction, settings.seed,
            one_model=settings.same_model == "prefer",
        )  # fmt: skip
        before = engine.run("SELECT count(*) FROM pairs WHERE first_choice")[0][0]
        balanced = balance(
            engine,
            count=count,
            positions=settings.balance_positions,
            lengths=settings.balance_lengths,
            weights=settings.weights(),
            seed=settings.seed,
        )
        account = account_for_rows(engine, seen)
        train = summarise_file(engine, "train")
        if not train["pairs"]:
            raise UserError(no_pair_message(engine, account))
        found = audit_rows(_sample(engine, folder, settings.seed), str(out), settings.seed)
        _write(settings, engine, folder)

        places = Places(seen)
        bad = _listed(out / "bad_rows.jsonl", (entry for *_, entry in _bad_rows(seen, folder)))
        contradictory = _listed(
            out / "contradictory_labels.jsonl",
            (
                {"id": key, "where": [places.name(row) for row in rows]}
                for key, rows in engine.contradictory()
            ),
        )
        summary = {
            "stage": "merge",
            **account,
            "bad_rows": [f"{row['file']}:{row['line']}: {row['reason']}" for row in bad],
            "contradictory_labels": [row["id"] for row in contradictory],
            "contradictory_comparisons": engine.run("SELECT count(*) FROM contradictory")[0][0],
            "excluded_comparisons": excluded,
            "presentations": count_presentations(engine),
            "pass_rates": pass_rate_histogram(engine),
            **train,
            "eval": summarise_file(engine, "eval") if settings.eval_fraction else {},
            "pairs_before_balancing": before,
            "balancing": balanced,
            "shortcut": found.shortcut,
            "shortcut_pairs": found.sampled,
            "template_hashes": hashes,
            "judge_version": judge.VERSION,
            "versions": versions(*_PACKAGES),
            "settings": jsonable(asdict(settings)),
            "command": sys.argv,
            "seconds": round(time.monotonic() - started, 2),
        }
        # Pictures of an earlier merge would not fit these rows.
        for name in PLOTS:
            with suppress(FileNotFoundError, NotADirectoryError):
                (out / "plots" / name).unlink()
        if settings.plots:
            draw(engine, out / "plots")
        write_json(out / "summary.json", summary)
    return summary


def _tell(settings: MergeSettings, summary: dict[str, Any]) -> None:
    changed = {what: sum(by.values()) for what, by in summary["balancing"].items()}
    dropped = changed["dropped_for_positions"] + changed["dropped_for_lengths"]
    bad = sum(summary[side].get("bad", 0) for side in ("correct_side", "incorrect_side"))
    answers = summary["chosen_answer"]
    print(
        f"{settings.out / 'train.jsonl'}: {summary['pairs']} pairs about {summary['comparisons']} "
        f"comparisons ({dropped} dropped to balance, "
        f"{changed.get('dropped_by_weights', 0)} by weights); chosen answer 1: "
        f"{answers['1']}, 2: {answers['2']}; same model: {summary['same_model']}; chosen longer: "
        f"{summary['chosen_longer']}; bad rows: {bad}"
    )
    if summary["eval"]:
        print(
            f"{settings.out / 'eval.jsonl'}: {summary['eval']['pairs']} pairs about "
            f"{summary['eval']['comparisons']} comparisons"
        )
    for name, count in summary["excluded_comparisons"].items():
        print(f"{count} comparisons of {name} were left out")
    if summary["contradictory_comparisons"]:
        print(
            f"{summary['contradictory_comparisons']} comparisons have contradictory labels: "
            f"{settings.out / 'contradictory_labels.jsonl'}"
        )
    if bad:
        print(f"bad rows are listed in {settings.out / 'bad_rows.jsonl'}")
    told = ", ".join(
        f"{name} {accuracy:.2f}"
        for name, accuracy in summary["shortcut"].items()
        if accuracy is not None
    )
    told = told or "too few comparisons"
    print(f"chosen told from rejected without an image (0.5 is chance): {told}")
    if warning := shortcut.warning(summary["shortcut"], str(settings.out / "train.jsonl")):
        print(warning, file=sys.stderr)
