"""Files that survive a kill: an append-only journal, and files that appear whole or not at all."""

import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import IO, Any

from cot_reward.errors import UserError


def dump(row: Any) -> str:
    return json.dumps(row, ensure_ascii=False)


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[str]]:
    """A file to write to, which takes its name when the block ends, and is gone when it fails.

    A reader sees the old file or the whole new one, also after a crash. Raises UserError when it
    cannot be written (a full disk, say); then the old one stays.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None
    try:
        # A path in a summary may not be UTF-8.
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="replace") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files private; these are outputs like any other.
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException as error:
        Path(name).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise UserError(f"{path}: cannot be written: {error.strerror}") from None
        raise


def write_text_file(path: Path, text: str | Iterable[str]) -> None:
    """Write a file by `atomic_file`. Raises UserError."""
    with atomic_file(path) as file:
        file.writelines([text] if isinstance(text, str) else text)


def write_json(path: Path, value: Any) -> None:
    write_text_file(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    write_text_file(path, (dump(row) + "\n" for row in rows))


def journal_entries(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Every entry of a journal, with the byte where its line begins; a torn last line is left out.

    Raises UserError for a line that was damaged from outside.
    """
    if not path.exists():
        return
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                entry = json.loads(line)
                if not isinstance(entry, dict):
                    raise ValueError
            except ValueError:
                raise UserError(
                    f"{path}:{number}: damaged; remove that line and run again"
                ) from None
            yield offset, entry
            offset += len(line)


def entry_at(file: IO[bytes], offset: int) -> dict[str, Any]:
    """The journal entry whose line begins at this byte."""
    file.seek(offset)
    entry: dict[str, Any] = json.loads(file.readline())
    return entry


class Journal:
    """An append-only JSONL file with one writer; an entry that `append` returned from is kept.

    A torn last line, left by a kill or a full disk, is cut off when the journal is opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        # Unbuffered: bytes that could not be written must not follow later, at another place.
        self._file = path.open("a+b", buffering=0)
        self._lock()
        self._repair()

    def _lock(self) -> None:
        import fcntl

        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            why = f"cannot be locked: {error.strerror}; use an --out on another file system"
            if isinstance(error, BlockingIOError):
                why = "another run is writing to this folder"
            raise UserError(f"{self.path}: {why}") from None

    def _repair(self) -> None:
        size = self._file.seek(0, os.SEEK_END)
        end = size
        while end > 0:
            start = max(0, end - 65536)
            self._file.seek(start)
            newline = self._file.read(end - start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        if end < size:
            self._file.truncate(end)
        self._file.seek(0, os.SEEK_END)

    def append(self, entries: Iterable[dict[str, Any]]) -> list[int]:
        """Add entries, all of them or (on OSError, such as a full disk) none; where each begins."""
        lines = [(dump(entry) + "\n").encode() for entry in entries]
        data = b"".join(lines)
        before = self._file.seek(0, os.SEEK_END)
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
        except OSError:
            os.ftruncate(self._file.fileno(), before)
            raise
        return list(accumulate(map(len, lines[:-1]), initial=before)) if lines else []

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
