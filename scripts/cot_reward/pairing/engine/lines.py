"""The DPO rows that `match` writes, one file a batch, and reading them back by their place."""

from pathlib import Path
from typing import IO, Self


def lines_path(folder: Path, batch: int) -> Path:
    return folder / f"lines-{batch:06}.jsonl"


class PairLines:
    """DPO rows as JSON lines, by batch, first byte and length. Use as `with PairLines(...)`.

    One file is open at a time, so callers read batch after batch.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._batch = folder, -1
        self._first = 0
        self._file: IO[bytes] | None = None

    def read(self, batch: int, start: int, length: int) -> bytes:
        if batch != self._batch or self._file is None:
            self._close()
            self._file = lines_path(self._folder, batch).open("rb")
            self._batch = batch
        self._file.seek(start)
        return self._file.read(length)

    def remove_before(self, batch: int) -> None:
        """Remove the files of earlier batches, so that the disk need not hold all rows twice."""
        for number in range(self._first, batch):
            lines_path(self._folder, number).unlink(missing_ok=True)
        self._first = max(self._first, batch)

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._close()
