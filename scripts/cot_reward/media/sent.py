"""What a request holds of an image: bytes and a URL; and a cache, so that it is decoded once."""

import contextlib
import hashlib
import io
import json
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal

import pybase64

from cot_reward.media.images import WEB_FORMATS, bound, decode_checked, needs_bound, read_file
from cot_reward.media.paths import ImageRoots, MediaError
from cot_reward.store import write_cache_file

_ENTRIES_PER_TRANSACTION = 256


class MediaReader:
    """Reads what is sent of a file; with a cache each content is decoded and checked once.

    A JPEG, PNG or WebP that needs no bound is sent unchanged. Of any other image the bounded image
    is sent as a PNG, without loss. `cache_dir` keeps this PNG, or the note that the file is sent
    unchanged, by the file's sha256 and `max_pixels`; None: no cache. Safe to use from several
    threads and processes. Use as `with MediaReader(...) as reader`.
    """

    def __init__(self, max_pixels: int, cache_dir: Path | None) -> None:
        self.max_pixels, self.cache_dir = max_pixels, cache_dir
        self._unchanged = _UnchangedFiles(cache_dir) if cache_dir is not None else None

    def read(self, path: Path) -> tuple[Path | None, bytes, str]:
        """The file with the sent bytes (None for a PNG without a cache), the bytes, the MIME type.

        Raises MediaError, and OSError when the cache cannot be written.
        """
        source = read_file(path, lambda stream: stream.read())
        cached, key = None, b""
        if self.cache_dir is not None and self._unchanged is not None:
            digest = hashlib.sha256(source)
            key = digest.digest() + self.max_pixels.to_bytes(8, "big")
            if mime := self._unchanged.get(key):
                return path, source, mime
            cached = self.cache_dir / f"{digest.hexdigest()}-{self.max_pixels}.png"
            with contextlib.suppress(FileNotFoundError):
                return cached, cached.read_bytes(), "image/png"
        image, _, smaller = decode_checked(source, path, self.max_pixels)
        try:
            if smaller or (image.format in WEB_FORMATS and not needs_bound(image, self.max_pixels)):
                mime = WEB_FORMATS[str(image.format)]
                if self._unchanged is not None:
                    self._unchanged.add(key, mime)
                return path, source, mime
            image = bound(image, self.max_pixels)
        except MediaError as error:
            raise MediaError(f"{path}: {error}", error.reason) from None
        buffer = io.BytesIO()
        # Level 2 takes a quarter of the default level's time and gives 5% more bytes.
        image.save(buffer, "PNG", compress_level=2)
        data = buffer.getvalue()
        if cached is not None:
            write_cache_file(cached, data)
        return cached, data, "image/png"

    def __enter__(self) -> "MediaReader":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._unchanged is not None:
            self._unchanged.close()


def data_url(data: bytes, mime: str) -> tuple[bytes, ...]:
    """A data URL as a JSON string, in pieces, because each copy of a large one takes time."""
    return b'"data:', mime.encode(), b";base64,", pybase64.b64encode(data), b'"'


def file_url(path: Path) -> tuple[bytes, ...]:
    """The file:// URL of a file as a JSON string, in pieces as `data_url` gives them."""
    return (json.dumps(path.resolve().as_uri()).encode(),)


def url_reader(
    reader: MediaReader, roots: ImageRoots, form: Literal["inline", "file"]
) -> Callable[[str], Iterable[bytes]]:
    """A function from a path below the media root to the URL that a request holds for it.

    `form` is "inline" for a data URL, "file" for a file:// URL where the file lies below the media
    root. A file that is made for the request does so only with a reader that has a cache.
    The function returns the JSON string of the URL in pieces. It blocks, and raises MediaError for
    a medium that cannot be used or lies outside its image root, OSError when the cache cannot be
    written.
    """

    def read_url(path: str) -> Iterable[bytes]:
        file, data, mime = reader.read(roots.file(path))
        # A server reads files below the media root only, and not the contents of the hub's cache.
        if form == "inline" or file is None or not roots.holds(file.resolve()):
            return data_url(data, mime)
        return file_url(file)

    return read_url


class _UnchangedFiles:
    """The files that are sent unchanged: sha256 and bound -> MIME type, in a database on disk.

    It only saves time: any fault of it is ignored, and entries that a kill loses are made again.
    Safe to use from several threads and processes.
    """

    def __init__(self, folder: Path) -> None:
        self._lock = threading.Lock()
        self._new: dict[bytes, str] = {}
        self._database: sqlite3.Connection | None = None
        with contextlib.suppress(OSError), self._use():
            folder.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(
                folder / "seen.sqlite", timeout=1, check_same_thread=False, isolation_level=None
            )
            self._database.executescript(
                "PRAGMA synchronous = OFF; PRAGMA cache_size = -4000; CREATE TABLE IF NOT EXISTS "
                "seen (key BLOB PRIMARY KEY, mime TEXT) WITHOUT ROWID"
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
        """The MIME type; "" for an unknown content."""
        mime = ""
        with self._use():
            if key in self._new:
                mime = self._new[key]
            elif self._database is not None:
                found = self._database.execute("SELECT mime FROM seen WHERE key = ?", (key,))
                (mime,) = found.fetchone() or ("",)
        return mime if mime in WEB_FORMATS.values() else ""

    def add(self, key: bytes, mime: str) -> None:
        with self._use():
            self._new[key] = mime
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
