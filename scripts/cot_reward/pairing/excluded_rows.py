"""Rows that no pair may use (contradictory labels, held out, pass rates), and all others."""

from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from cot_reward.pairing.engine.database import Engine
from cot_reward.pairing.engine.match import BATCH_COLUMNS
from cot_reward.pairing.engine.scan import SCHEMA, shard_path
from cot_reward.tasks import TASKS

# Why a row may not be paired, before texts are compared ("": it may be). The first reason counts.
_ROW_FATES = """
    CREATE TABLE row_fates AS
    SELECT row, right_side, presentation,
        CASE WHEN excluded.comparison IS NOT NULL THEN 'excluded'
             WHEN fate <> '' THEN fate
             WHEN contradictory.comparison IS NOT NULL THEN 'contradictory_labels'
             WHEN pass_rates.rate NOT BETWEEN $low AND $high THEN 'outside_pass_rate'
             ELSE '' END AS fate
    FROM facts
    LEFT JOIN excluded USING (comparison)
    LEFT JOIN contradictory USING (comparison)
    LEFT JOIN pass_rates USING (comparison)
"""

# Comparisons whose rows disagree on the preferred candidate.
# Where the candidates are texts in the prompt, `preferred` is a place, 1 or 2. It means the same
# candidate within one presentation only. Two presentations can be compared by the names of their
# orders, if each presentation has one name and the two names differ.
_OF_TEXTS = "task IN ({})".format(
    ", ".join(f"'{task}'" for task in TASKS if not TASKS[task].compares_media)
)
_CONTRADICTORY = f"""
    CREATE TABLE contradictory AS
    WITH claims AS (
        SELECT comparison, presentation, nullif("order", '') AS name, preferred,
            {_OF_TEXTS} AS of_texts
        FROM facts ANTI JOIN excluded USING (comparison) WHERE preferred <> 0),
    shown AS (
        SELECT comparison, min(name) AS name, max(name) AS other_name, min(preferred) AS preferred
        FROM claims WHERE of_texts GROUP BY comparison, presentation)
    SELECT comparison FROM claims WHERE NOT of_texts
    GROUP BY comparison HAVING min(preferred) <> max(preferred)
    UNION SELECT comparison FROM claims WHERE of_texts
    GROUP BY comparison, presentation HAVING min(preferred) <> max(preferred)
    UNION SELECT comparison FROM shown GROUP BY comparison
    HAVING count(*) = 2 AND count(name) = 2 AND bool_and(name = other_name)
        AND min(name) <> max(name) AND min(preferred) = max(preferred)
"""
# Their keys, and a row for each candidate; the shards, which have the keys, do not stay to the end.
_CONTRADICTORY_ROWS = f"""
    CREATE TABLE contradictory_rows AS
    SELECT id, min(row) AS row FROM {{shards}}
    SEMI JOIN contradictory USING (comparison) WHERE preferred <> 0
    GROUP BY id, preferred, if({_OF_TEXTS}, presentation, 0)
"""


def find_pairable_rows(engine: Engine, buckets: int, low: float, high: float) -> None:
    """Read the shards of all buckets; find the rows that may be paired.

    Needs the table `excluded` (comparison). A comparison's pass rate must lie between `low` and
    `high`. Makes the tables `facts` (every row without its texts), `contradictory`
    (comparison), `contradictory_rows` (id, row), `pass_rates` (comparison, rate), `row_fates` (why
    a row may not be paired, or "") and `both_kinds` (presentations with right and wrong texts).
    """
    # A pattern that matches no file is an error.
    for bucket in range(buckets):
        parquet.write_table(SCHEMA.empty_table(), shard_path(engine.folder, bucket, "none"))
    engine.run(
        "CREATE TABLE facts AS SELECT row, right_side, fate, comparison, presentation, pictures, "
        f'preferred, response, verdict, task, template_hash, model, "order" FROM {engine.shards()}'
    )
    engine.run(_CONTRADICTORY)
    engine.run(_CONTRADICTORY_ROWS.format(shards=engine.shards()))
    # A response that stands in two files counts as one sample.
    engine.run(
        "CREATE TABLE pass_rates AS SELECT comparison, avg(correct::INT) AS rate FROM ("
        "SELECT comparison, response, bool_or(verdict = 'correct') AS correct FROM facts "
        "ANTI JOIN excluded USING (comparison) GROUP BY comparison, response) "
        "GROUP BY comparison"
    )
    engine.run(_ROW_FATES, {"low": low, "high": high})
    engine.run(
        "CREATE TABLE both_kinds AS SELECT presentation FROM row_fates WHERE fate = '' "
        "GROUP BY presentation HAVING bool_or(right_side) AND bool_or(NOT right_side)"
    )


def read_pairable_rows(engine: Engine, buckets: int) -> tuple[int, Iterator[pa.RecordBatch]]:
    """The pairable rows of presentations with both kinds: their number, and the rows.

    The rows are sorted by comparison and presentation. A bucket's shards are removed when its rows
    were read: the disk need not hold all texts twice.
    """
    ((count,),) = engine.run(
        "SELECT count(*) FROM row_fates SEMI JOIN both_kinds USING (presentation) WHERE fate = ''"
    )
    return count, chain.from_iterable(map(partial(_sorted, engine), range(buckets)))


def _sorted(engine: Engine, bucket: int) -> Iterator[pa.RecordBatch]:
    columns = ", ".join(f'"{name}"' for name in BATCH_COLUMNS)
    shards = engine.shards(shard_path(Path(), bucket, "*").stem)
    query = (
        f"SELECT {columns} FROM {shards} SEMI JOIN both_kinds USING (presentation) "
        "WHERE fate = '' ORDER BY id, presentation"
    )
    # A cursor of its own: other queries run while its rows are read.
    yield from engine.database.cursor().sql(query).to_arrow_reader(4096)
    for path in engine.folder.glob(shard_path(Path(), bucket, "*").name):
        path.unlink()


def template_hashes(engine: Engine) -> dict[str, list[str]]:
    """The template hashes of the rows that may be paired, by task."""
    hashes: dict[str, list[str]] = defaultdict(list)
    for task, value in engine.run(
        "SELECT DISTINCT task, template_hash FROM facts JOIN row_fates USING (row) "
        "WHERE row_fates.fate = '' AND template_hash <> '' ORDER BY ALL"
    ):
        hashes[task].append(value)
    return dict(hashes)


def contradictory_comparisons(engine: Engine) -> Iterator[tuple[str, list[int]]]:
    """Comparisons with two preferred candidates: the key, and one row for each candidate."""
    cursor = engine.database.cursor().execute(
        "SELECT id, list(row ORDER BY row) FROM contradictory_rows GROUP BY id ORDER BY id"
    )
    while rows := cursor.fetchmany(1000):
        yield from rows
