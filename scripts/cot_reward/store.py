"""Files that survive a kill: an append-only journal, and files that appear whole or not at all."""

import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from cot_reward.settings import UserError


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | ValueError]]:
    """Rows of a JSON list or JSONL file, with their position: list index or line, from 1.

    A row that is no JSON object comes as a ValueError in its place, so that one bad line costs
    one row. Raises UserError when the file is missing, empty, or (as a list) not valid JSON.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            head = file.read(4096).lstrip()[:1]
            file.seek(0)
            if head == "[":
                try:
                    items = json.load(file)
                except UnicodeDecodeError:
                    raise
                except (ValueError, RecursionError) as error:
                    raise UserError(
                        f"{path}: not a whole JSON list ({error}); was its writer stopped half-way?"
                    ) from None
                for number, item in enumerate(items, 1):
                    yield number, _checked(item)
                return
            if not head:
                raise UserError(f"{path}: empty")
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, _object(line)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None


def _object(line: str) -> dict[str, Any] | ValueError:
    try:
        item = json.loads(line)
    except (ValueError, RecursionError) as error:
        return ValueError(f"not valid JSON: {error}")
    return _checked(item)


def _checked(item: Any) -> dict[str, Any] | ValueError:
    if not isinstance(item, dict):
        return ValueError("not an object")
    try:
        # JSON can spell half a character (a lone surrogate); no file or request can hold it.
        dump(item).encode()
    except UnicodeEncodeError as error:
        return ValueError(f"not valid Unicode: {error}")
    return item


def dump(row: Any) -> str:
    return json.dumps(row, ensure_ascii=False)


def write_whole(path: Path, text: str | Iterable[str]) -> None:
    """Write a file so that a reader sees the old one or the whole new one, also after a crash.

    Raises UserError when it cannot be written (a full disk, say); then the old one stays.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.writelines([text] if isinstance(text, str) else text)
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


def write_json(path: Path, value: Any) -> None:
    write_whole(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    write_whole(path, (dump(row) + "\n" for row in rows))


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
        except OSError:
            self._file.close()
            raise UserError(f"{self.path}: another run is writing to this folder") from None

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

    def entries(self) -> Iterator[dict[str, Any]]:
        """Every entry so far. Raises UserError for a line that was damaged from outside."""
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    yield json.loads(line)
                except ValueError:
                    raise UserError(
                        f"{self.path}:{number}: damaged; remove that line and run again"
                    ) from None

    def append(self, entries: Iterable[dict[str, Any]]) -> None:
        """Add entries, all of them or (on OSError, such as a full disk) none."""
        data = "".join(dump(entry) + "\n" for entry in entries).encode()
        before = self._file.seek(0, os.SEEK_END)
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
        except OSError:
            os.ftruncate(self._file.fileno(), before)
            raise

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
