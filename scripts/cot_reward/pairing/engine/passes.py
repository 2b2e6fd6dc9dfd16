"""The two passes over all rows, on all cores: judge the files into shards, then pair the rows."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa
from tqdm import tqdm

from cot_reward.pairing.engine.database import Engine
from cot_reward.pairing.engine.match import POSSIBLE_PAIRS, UNPAIRED_ROWS, batches_of, match
from cot_reward.pairing.engine.scan import Part, ScannedPart, scan
from cot_reward.pairing.engine.workers import Workers
from cot_reward.pairing.pairs import Rules

# An insertion takes some milliseconds, however few rows it has.
_BATCHES_PER_INSERT = 32


def judge_parts(parts: Sequence[Part], workers: Workers) -> list[ScannedPart]:
    """Write the shards of all parts; what each part held."""
    scanned = []
    with tqdm(desc="rows judged", unit=" rows", disable=None) as bar:
        for part in workers.map(scan, parts):
            scanned.append(part)
            bar.update(part.rows)
    return scanned


def pair_rows(
    engine: Engine,
    count: int,
    rows: Iterable[pa.RecordBatch],
    folder: Path,
    rules: Rules,
    workers: Workers,
) -> None:
    """Fill the tables `possible_pairs` and `unpaired_rows`, and write the DPO rows (`lines`).

    `rows` are the `count` pairable rows, sorted by comparison and presentation.
    """
    engine.add("possible_pairs", POSSIBLE_PAIRS.empty_table())
    engine.add("unpaired_rows", UNPAIRED_ROWS.empty_table())
    held: dict[str, list[pa.Table]] = {"possible_pairs": [], "unpaired_rows": []}

    def flush() -> None:
        for name, tables in held.items():
            if tables:
                engine.add(name, pa.concat_tables(tables))
                tables.clear()

    with tqdm(total=count, desc="rows paired", unit=" rows", disable=None) as bar:
        for paired, *streams in workers.map(match, batches_of(rows, folder, rules)):
            for name, stream in zip(held, streams, strict=True):
                with pa.ipc.open_stream(stream) as opened:
                    held[name].append(opened.read_all())
            if len(held["possible_pairs"]) >= _BATCHES_PER_INSERT:
                flush()
            bar.update(paired)
    flush()
