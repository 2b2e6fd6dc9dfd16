"""Tar files that are read to their end, or not at all."""

import io
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

# The right end of an archive.
_END: Any = tarfile.EOFHeaderError  # type: ignore[attr-defined]


class _WholeTarInfo(tarfile.TarInfo):
    """Headers of a whole archive: a damaged or missing one is an error.

    `tarfile` itself takes such a header behind the first one for the archive's end, so that all
    further files would be missing without a word.
    """

    @classmethod
    def fromtarfile(cls, archive: Any) -> Any:
        try:
            return super().fromtarfile(archive)
        except _END:
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(
                f"damaged or cut short at byte {archive.offset:,} ({error})"
            ) from None


@contextmanager
def opened_tar(source: Path | IO[bytes] | io.RawIOBase) -> Iterator[tarfile.TarFile]:
    """A tar file, compressed or not, to be read once from its beginning.

    Raises TarError and OSError, also while it is read.
    """
    path: Any = source if isinstance(source, Path) else None
    stream: Any = None if isinstance(source, Path) else source
    with tarfile.open(path, "r|*", stream, tarinfo=_WholeTarInfo) as archive:
        yield archive
