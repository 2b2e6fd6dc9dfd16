"""The database of a merge: joins, sorts and counts out of core, in a folder that goes away."""

import fcntl
import glob
import os
import shutil
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
from pyarrow import parquet

from cot_reward.errors import UserError
from cot_reward.pairing.engine import match, scan
from cot_reward.tasks import TASKS

# What a row is told of before texts are compared; the first that holds counts.
_STATE = """
    CREATE TABLE state AS
    SELECT row, right_side, presentation,
        CASE WHEN excluded.comparison IS NOT NULL THEN 'excluded'
             WHEN fate <> '' THEN fate
             WHEN contradictory.comparison IS NOT NULL THEN 'contradictory_labels'
             WHEN rates.rate NOT BETWEEN $low AND $high THEN 'outside_pass_rate'
             ELSE '' END AS fate
    FROM facts
    LEFT JOIN excluded USING (comparison)
    LEFT JOIN contradictory USING (comparison)
    LEFT JOIN rates USING (comparison)
"""


# Tasks whose candidates are texts in the prompt: there `preferred` is the place that was shown, 1
# or 2, and says the same in one presentation only. Between two presentations the names of their
# orders tell, where each has one of the two names for itself.
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


@contextmanager
def workspace(out: Path) -> Iterator[Path]:
    """An empty folder in `out` that is this merge's alone, and is gone when the block ends.

    What a killed merge left there goes first. Raises UserError when another one is at work.
    """
    folder, lock = out / ".merging", out / ".merging.lock"
    try:
        out.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror}") from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The last one may have taken the file away in between.
            if not os.path.samestat(os.fstat(descriptor), lock.stat()):
                raise BlockingIOError
        except (BlockingIOError, FileNotFoundError):
            raise UserError(f"{out}: another merge writes to this folder") from None
        except OSError:
            # A file system without locks.
            pass
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            lock.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


class Engine:
    """The shards of a folder as tables. Use as `with Engine(...) as engine`.

    Raises UserError for a memory limit that is none; `duckdb.Error` when disk or memory end.
    """

    def __init__(self, folder: Path, memory: str, threads: int) -> None:
        self._folder = folder = folder.resolve()
        self.database = duckdb.connect(
            str(folder / "merge.duckdb"),
            config={
                "threads": threads,
                "temp_directory": str(folder / "spilled"),
                "preserve_insertion_order": False,
            },
        )
        try:
            self.run("SET memory_limit = $memory", {"memory": memory})
        except duckdb.Error as error:
            raise UserError(f"--memory {memory}: {str(error).splitlines()[0]}") from None
        self.run("SET enable_progress_bar = false")

    def _shards(self, pattern: str = "shard-*") -> str:
        """Shards as a table."""
        # Whatever the folder is called: no pattern, no NAME=VALUE that would be taken for a column.
        files = f"{glob.escape(str(self._folder))}/{pattern}.parquet".replace("'", "''")
        return f"read_parquet('{files}', hive_partitioning = false)"

    def run(self, query: str, parameters: Any = None) -> list[tuple[Any, ...]]:
        cursor = self.database.execute(query, parameters)
        return list(cursor.fetchall()) if cursor.description else []

    def add(self, table: str, rows: pa.Table) -> None:
        """Append rows to a table, which is made when there is none."""
        self.database.register("rows_to_add", rows)
        self.run(f"CREATE TABLE IF NOT EXISTS {table} AS FROM rows_to_add LIMIT 0")
        self.run(f"INSERT INTO {table} FROM rows_to_add")
        self.database.unregister("rows_to_add")

    def settle(self, buckets: int, low: float, high: float) -> None:
        """Read the shards; find which rows may be paired, and presentations with both kinds.

        Table `excluded` (comparison) must be there. A comparison's pass rate must lie from `low` to
        `high`. Rows lie in so many buckets.
        """
        # A pattern must match something.
        for bucket in range(buckets):
            empty = scan.shard(self._folder, bucket, "none")
            parquet.write_table(scan.SCHEMA.empty_table(), empty)
        self.run(
            "CREATE TABLE facts AS SELECT row, right_side, fate, comparison, presentation, "
            f'preferred, response, verdict, task, template_hash, "order" FROM {self._shards()}'
        )
        self.run(_CONTRADICTORY)
        # A response that stands in two files is one sample.
        self.run(
            "CREATE TABLE rates AS SELECT comparison, avg(correct::INT) AS rate FROM ("
            "SELECT comparison, response, bool_or(verdict = 'correct') AS correct FROM facts "
            "ANTI JOIN excluded USING (comparison) GROUP BY comparison, response) "
            "GROUP BY comparison"
        )
        self.run(_STATE, {"low": low, "high": high})
        self.run(
            "CREATE TABLE both_kinds AS SELECT presentation FROM state WHERE fate = '' "
            "GROUP BY presentation HAVING bool_or(right_side) AND bool_or(NOT right_side)"
        )

    def partners(self, buckets: int) -> tuple[int, Iterator[pa.RecordBatch]]:
        """How many rows have a partner, and those rows, sorted by comparison and presentation."""
        ((count,),) = self.run(
            "SELECT count(*) FROM state SEMI JOIN both_kinds USING (presentation) WHERE fate = ''"
        )
        return count, chain.from_iterable(map(self._sorted, range(buckets)))

    def _sorted(self, bucket: int) -> pa.RecordBatchReader:
        columns = ", ".join(f'"{name}"' for name in match.COLUMNS)
        shards = self._shards(scan.shard(Path(), bucket, "*").stem)
        query = (
            f"SELECT {columns} FROM {shards} SEMI JOIN both_kinds USING (presentation) "
            "WHERE fate = '' ORDER BY id, presentation"
        )
        # A connection of its own, since other queries run while it is read.
        return self.database.cursor().sql(query).to_arrow_reader(4096)

    def template_hashes(self) -> dict[str, list[str]]:
        """By task, of the rows that could be paired."""
        hashes: dict[str, list[str]] = defaultdict(list)
        for task, value in self.run(
            "SELECT DISTINCT task, template_hash FROM facts JOIN state USING (row) "
            "WHERE state.fate = '' AND template_hash <> '' ORDER BY ALL"
        ):
            hashes[task].append(value)
        return dict(hashes)

    def contradictory(self) -> Iterator[tuple[str, list[int]]]:
        """Comparisons with two preferred candidates: key, and a row for each that was claimed."""
        cursor = self.database.cursor().execute(f"""
            SELECT id, list(row ORDER BY row) FROM (
                SELECT id, min(row) AS row FROM {self._shards()}
                SEMI JOIN contradictory USING (comparison) WHERE preferred <> 0
                GROUP BY id, preferred, if({_OF_TEXTS}, presentation, 0))
            GROUP BY id ORDER BY id""")
        while rows := cursor.fetchmany(1000):
            yield from rows

    def account(self) -> dict[str, dict[str, int]]:
        """What became of every row that could be read, by side.

        Tables `pairs` (with `state`, see `balance`) and `fates` must be there.
        """
        counts: dict[str, dict[str, int]] = {"correct_side": {}, "incorrect_side": {}}
        for right_side, fate, count in self.run("""
            WITH uses AS (
                SELECT row, min(state) AS use FROM (
                    SELECT chosen_row AS row, state FROM pairs
                    UNION ALL SELECT rejected_row, state FROM pairs)
                GROUP BY row)
            SELECT right_side, CASE WHEN state.fate <> '' THEN state.fate
                ELSE coalesce(substr(uses.use, 3), fates.fate, 'no_partner') END AS final, count(*)
            FROM state LEFT JOIN uses USING (row) LEFT JOIN fates USING (row)
            GROUP BY ALL ORDER BY ALL"""):
            counts["correct_side" if right_side else "incorrect_side"][fate] = count
        return counts

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *exception: object) -> None:
        self.database.close()
