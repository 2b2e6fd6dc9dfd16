"""What was found out about the contents of files, kept on disk: key -> text, in one database."""

import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

_ENTRIES_PER_TRANSACTION = 256


class SeenFiles:
    """A database of notes. The keys are made of the files' hashes, so a changed file has no note.

    It only saves time: any fault of it is ignored, and entries that a kill loses are made again.
    Safe to use from several threads and processes. Use as `with SeenFiles(...) as seen`.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._new: dict[bytes, str] = {}
        self._database: sqlite3.Connection | None = None
        with contextlib.suppress(OSError), self._use():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(
                path, timeout=1, check_same_thread=False, isolation_level=None
            )
            self._database.executescript(
                "PRAGMA synchronous = OFF; PRAGMA cache_size = -4000; CREATE TABLE IF NOT EXISTS "
                "seen (key BLOB PRIMARY KEY, note TEXT) WITHOUT ROWID"
            )

    @contextlib.contextmanager
    def _use(self) -> Iterator[None]:
        """One thread at a time. After an error the database is closed and not used again."""
        with self._lock:
            try:
                yield
            except sqlite3.Error:
                with contextlib.suppress(sqlite3.Error):
                    if self._database is not None:
                        self._database.close()
                self._database = None

    def get(self, key: bytes) -> str:
        """The note; "" for an unknown content. A damaged database may give any text."""
        note = ""
        with self._use():
            if key in self._new:
                note = self._new[key]
            elif self._database is not None:
                # The second column has had another name.
                found = self._database.execute("SELECT * FROM seen WHERE key = ?", (key,))
                _, note = found.fetchone() or (key, "")
        return str(note)

    def add(self, key: bytes, note: str) -> None:
        with self._use():
            self._new[key] = note
            if len(self._new) >= _ENTRIES_PER_TRANSACTION:
                self._write()

    def _write(self) -> None:
        new, self._new = self._new, {}
        if self._database is not None:
            # Many in one transaction: one transaction for each would cost more than decoding.
            self._database.execute("BEGIN IMMEDIATE")
            self._database.executemany("INSERT OR IGNORE INTO seen VALUES (?, ?)", new.items())
            self._database.execute("COMMIT")

    def close(self) -> None:
        with self._use():
            self._write()
            if self._database is not None:
                self._database.close()
                self._database = None

    def __enter__(self) -> "SeenFiles":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
