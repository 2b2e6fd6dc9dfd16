"""A file of rows that is complete and safe on the disk before it takes its name, and its sha256."""

import os
from hashlib import file_digest, sha256
from pathlib import Path


class RowsFile:
    """A new file to write lines to; `close` gives the sha256 of all of them. Raises OSError."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._digest = sha256()

    def write(self, line: bytes) -> None:
        self._digest.update(line)
        self._file.write(line)

    def close(self) -> str:
        """Have all lines on the disk; their sha256, 64 hexadecimal digits."""
        with self._file:
            self._file.flush()
            os.fsync(self._file.fileno())
        return self._digest.hexdigest()

    def __enter__(self) -> "RowsFile":
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()


def sha256_of(path: Path) -> str:
    """The sha256 of a file, 64 hexadecimal digits; "" where there is none. Raises OSError."""
    try:
        with path.open("rb") as file:
            return file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return ""
