"""The database of a merge (DuckDB): joins, sorts and counts that may be larger than memory."""

import fcntl
import glob
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from cot_reward.errors import UserError

_BYTES = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40, "PiB": 2**50}
# What a merge has in its `out` while it works.
WORK_FOLDER, LOCK_FILE = ".merging", ".merging.lock"


@contextmanager
def workspace(out: Path) -> Iterator[Path]:
    """An empty folder in `out` for this merge alone; it is removed when the block ends.

    The remains of a killed merge are removed first. Raises UserError when another merge writes to
    `out`.
    """
    folder, lock = out / WORK_FOLDER, out / LOCK_FILE
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
        self.folder = folder = folder.resolve()
        self.threads = threads
        self.database = duckdb.connect(
            str(folder / "merge.duckdb"),
            config={
                "threads": threads,
                "temp_directory": str(folder / "spilled"),
                "preserve_insertion_order": False,
            },
        )
        # The database takes a number below 0 for all memory there is and more.
        if memory.strip().startswith("-"):
            raise UserError(f"--memory {memory}: is below 0; write it as 500MB or 4GB")
        try:
            self.run("SET memory_limit = $memory", {"memory": memory})
        except duckdb.Error as error:
            raise UserError(f"--memory {memory}: {str(error).splitlines()[0]}") from None
        self.run("SET enable_progress_bar = false")

    @property
    def memory(self) -> int:
        """The memory limit in bytes."""
        # The database tells it as "476.8 MiB", or "0 bytes".
        ((limit,),) = self.run("SELECT current_setting('memory_limit')")
        number, unit = limit.split()
        return int(float(number) * _BYTES[unit])

    def shards(self, pattern: str = "shard-*") -> str:
        """A table expression of the shards that match."""
        # The folder's name may look like a pattern, or like NAME=VALUE, which would be a column.
        files = f"{glob.escape(str(self.folder))}/{pattern}.parquet".replace("'", "''")
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

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *exception: object) -> None:
        self.database.close()
