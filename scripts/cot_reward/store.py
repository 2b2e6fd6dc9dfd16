"""Files that survive a kill: append-only journals, and files that appear complete or not at all."""

import json
import math
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import IO, Any

from cot_reward.errors import UserError

# How much of a journal's end is read at a time, in search of its last line break.
_REPAIR_BYTES = 65536


def dump(row: Any) -> str:
    return json.dumps(row, ensure_ascii=False)


@contextmanager
def _replacement(path: Path, synced: bool, **options: Any) -> Iterator[IO[Any]]:
    """A file, opened with `options`, that takes the name `path` when the block ends.

    It is removed when the block fails. `synced`: its content is on the disk before it takes the
    name. Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, **options) as file:
            yield file
            if synced:
                file.flush()
                os.fsync(file.fileno())
        # mkstemp makes private files; outputs are readable by all.
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[str]]:
    """A text file to write to; it takes its name when the block ends.

    A reader sees the old file or the complete new one, also after a crash. Raises UserError when
    the file cannot be written (a full disk, say); then the old file stays.
    """
    try:
        # A path in a summary may not be UTF-8.
        with _replacement(path, True, mode="w", encoding="utf-8", errors="replace") as file:
            yield file
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None


def write_cache_file(path: Path, data: bytes) -> None:
    """Write a file that can be made again: every reader sees a complete file.

    It may be lost when the machine crashes, because syncing would take longer than writing. Several
    processes may write it at the same time. Raises OSError.
    """
    with _replacement(path, False, mode="wb") as file:
        file.write(data)


def write_text_file(path: Path, text: str | Iterable[str]) -> None:
    """Write a text file with `atomic_file`. Raises UserError."""
    with atomic_file(path) as file:
        file.writelines([text] if isinstance(text, str) else text)


def without_nan(value: Any) -> Any:
    """The value with None for each number that JSON has no word for."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, value: Any) -> None:
    write_text_file(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty when there is none that can be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    write_text_file(path, (dump(row) + "\n" for row in rows))


# As `tempfile` makes names.
_LEFTOVER = re.compile(r"\.[^.]+\.jsonl?\.[a-z0-9_]{8}")


def remove_leftovers(folder: Path) -> None:
    """Remove half-written JSON and JSONL files of a start that was killed (see `atomic_file`)."""
    for leftover in folder.glob(".*.json*.*"):
        # Others have files of names like it: editors, people.
        if _LEFTOVER.fullmatch(leftover.name) and leftover.is_file():
            leftover.unlink()


def journal_entries(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The entries of a journal, each with the byte where its line begins.

    A torn last line is left out. Raises UserError for a damaged line.
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


def lock(file: IO[Any], path: Path, held: str, another: str) -> None:
    """Lock an open file until it is closed.

    Raises UserError, and closes the file, when another process has the lock (`held` says what that
    means) and where the file system has no locks (`another` names what to choose on another one).
    `path` is for the message.
    """
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        why = f"cannot be locked: {error.strerror}; use {another} on another file system"
        if isinstance(error, BlockingIOError):
            why = held
        raise UserError(f"{path}: {why}") from None


class Journal:
    """An append-only JSONL file with one writer; entries are on the disk when `append` returns.

    Opening the journal cuts off a torn last line, which a kill or a full disk leaves. Raises
    UserError when another process has the journal open.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        # Unbuffered, so that bytes that could not be written do not follow later, in another place.
        self._file = path.open("a+b", buffering=0)
        lock(self._file, self.path, "another run is writing to this folder", "an --out")
        self._repair()

    def _repair(self) -> None:
        size = self._file.seek(0, os.SEEK_END)
        end = size
        while end > 0:
            start = max(0, end - _REPAIR_BYTES)
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
        """Add all entries, or none on OSError (a full disk); returns the byte where each begins."""
        # A path may not be UTF-8.
        lines = [(dump(entry) + "\n").encode("utf-8", "replace") for entry in entries]
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
