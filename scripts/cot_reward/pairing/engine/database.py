"""The database of a merge (DuckDB): joins, sorts and counts that may be larger than memory."""

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


@contextmanager
def workspace(out: Path) -> Iterator[Path]:
    """An empty folder in `out` for this merge alone; it is removed when the block ends.

    The remains of a killed merge are removed first. Raises UserError when another merge writes to
    `out`.
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
            # The merge before may have removed the lock file after we opened it.
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
    """A database in a folder, with the folder's shards as tables. Use as `with Engine(...)`.

    Raises UserError for a memory limit that cannot be read, and `duckdb.Error` when the disk or the
    memory is full.
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
        """A table expression of the shards that match."""
        # The folder's name may look like a pattern, or like NAME=VALUE, which would be a column.
        files = f"{glob.escape(str(self._folder))}/{pattern}.parquet".replace("'", "''")
        return f"read_parquet('{files}', hive_partitioning = false)"

    def run(self, query: str, parameters: Any = None) -> list[tuple[Any, ...]]:
        """The rows of a query's result."""
        cursor = self.database.execute(query, parameters)
        return list(cursor.fetchall()) if cursor.description else []

    def add(self, table: str, rows: pa.Table) -> None:
        """Append rows to a table, which is created if it does not exist."""
        self.database.register("rows_to_add", rows)
        self.run(f"CREATE TABLE IF NOT EXISTS {table} AS FROM rows_to_add LIMIT 0")
        self.run(f"INSERT INTO {table} FROM rows_to_add")
        self.database.unregister("rows_to_add")

    def find_pairable_rows(self, buckets: int, low: float, high: float) -> None:
        """Read the shards of all buckets; find the rows that may be paired.

        Needs the table `excluded` (comparison). A comparison's pass rate must lie between `low` and
        `high`. Makes the tables `facts` (every row without its texts), `contradictory`
        (comparison), `pass_rates` (comparison, rate), `row_fates` (why a row may not be paired, or
        "") and `both_kinds` (presentations with right and wrong texts).
        """
        # A pattern that matches no file is an error.
        for bucket in range(buckets):
            parquet.write_table(SCHEMA.empty_table(), shard_path(self._folder, bucket, "none"))
        self.run(
            "CREATE TABLE facts AS SELECT row, right_side, fate, comparison, presentation, "
            f'preferred, response, verdict, task, template_hash, "order" FROM {self._shards()}'
        )
        self.run(_CONTRADICTORY)
        # A response that stands in two files counts as one sample.
        self.run(
            "CREATE TABLE pass_rates AS SELECT comparison, avg(correct::INT) AS rate FROM ("
            "SELECT comparison, response, bool_or(verdict = 'correct') AS correct FROM facts "
            "ANTI JOIN excluded USING (comparison) GROUP BY comparison, response) "
            "GROUP BY comparison"
        )
        self.run(_ROW_FATES, {"low": low, "high": high})
        self.run(
            "CREATE TABLE both_kinds AS SELECT presentation FROM row_fates WHERE fate = '' "
            "GROUP BY presentation HAVING bool_or(right_side) AND bool_or(NOT right_side)"
        )

    def pairable_rows(self, buckets: int) -> tuple[int, Iterator[pa.RecordBatch]]:
        """The pairable rows of presentations with both kinds: their number, and the rows.

        The rows are sorted by comparison and presentation.
        """
        ((count,),) = self.run(
            "SELECT count(*) FROM row_fates SEMI JOIN both_kinds USING (presentation) "
            "WHERE fate = ''"
        )
        return count, chain.from_iterable(map(self._sorted, range(buckets)))

    def _sorted(self, bucket: int) -> pa.RecordBatchReader:
        columns = ", ".join(f'"{name}"' for name in BATCH_COLUMNS)
        shards = self._shards(shard_path(Path(), bucket, "*").stem)
        query = (
            f"SELECT {columns} FROM {shards} SEMI JOIN both_kinds USING (presentation) "
            "WHERE fate = '' ORDER BY id, presentation"
        )
        # A cursor of its own: other queries run while its rows are read.
        return self.database.cursor().sql(query).to_arrow_reader(4096)

    def template_hashes(self) -> dict[str, list[str]]:
        """The template hashes of the rows that may be paired, by task."""
        hashes: dict[str, list[str]] = defaultdict(list)
        for task, value in self.run(
            "SELECT DISTINCT task, template_hash FROM facts JOIN row_fates USING (row) "
            "WHERE row_fates.fate = '' AND template_hash <> '' ORDER BY ALL"
        ):
            hashes[task].append(value)
        return dict(hashes)

    def contradictory(self) -> Iterator[tuple[str, list[int]]]:
        """Comparisons with two preferred candidates: the key, and one row for each candidate."""
        cursor = self.database.cursor().execute(f"""
            SELECT id, list(row ORDER BY row) FROM (
                SELECT id, min(row) AS row FROM {self._shards()}
                SEMI JOIN contradictory USING (comparison) WHERE preferred <> 0
                GROUP BY id, preferred, if({_OF_TEXTS}, presentation, 0))
            GROUP BY id ORDER BY id""")
        while rows := cursor.fetchmany(1000):
            yield from rows

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *exception: object) -> None:
        self.database.close()
