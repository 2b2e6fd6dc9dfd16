"""What a request holds of an image: bytes and a URL; and a cache, so that it is decoded once."""

import contextlib
import hashlib
import io
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

import pybase64
from PIL import Image

from cot_reward.media.images import WEB_FORMATS, bound, decode_checked, needs_bound, read_file
from cot_reward.media.paths import ImageRoots, MediaError
from cot_reward.media.seen import SeenFiles
from cot_reward.store import write_cache_file


class MediaReader:
    """Reads what is sent of a file; with a cache each content is decoded and checked once.

    A JPEG, PNG or WebP that needs no bound is sent unchanged. Of any other image the bounded image
    is sent as a PNG, without loss. `cache_dir` keeps this PNG, or the note that the file is sent
    unchanged, by the file's sha256 and `max_pixels`; None: no cache. Safe to use from several
    threads and processes. Use as `with MediaReader(...) as reader`.
    """

    def __init__(self, max_pixels: int, cache_dir: Path | None) -> None:
        self.max_pixels, self.cache_dir = max_pixels, cache_dir
        # The files that are sent unchanged, with their MIME types.
        self._unchanged = SeenFiles(cache_dir / "seen.sqlite") if cache_dir is not None else None

    def read(self, path: Path) -> tuple[Path | None, bytes, str]:
        """The file with the sent bytes (None for a PNG without a cache), the bytes, the MIME type.

        Raises MediaError, and OSError when the cache cannot be written.
        """
        source = read_file(path, lambda stream: stream.read())
        cached, key = None, b""
        if self.cache_dir is not None and self._unchanged is not None:
            digest = hashlib.sha256(source)
            key = digest.digest() + self.max_pixels.to_bytes(8, "big")
            if (mime := self._unchanged.get(key)) in WEB_FORMATS.values():
                return path, source, mime
            cached = self.cache_dir / f"{digest.hexdigest()}-{self.max_pixels}.png"
            with contextlib.suppress(FileNotFoundError):
                return cached, cached.read_bytes(), "image/png"
        data, mime = to_send(source, path, self.max_pixels)
        if data is source:
            if self._unchanged is not None:
                self._unchanged.add(key, mime)
            return path, source, mime
        if cached is not None:
            write_cache_file(cached, data)
        return cached, data, mime

    def __enter__(self) -> "MediaReader":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._unchanged is not None:
            self._unchanged.close()


def to_send(source: bytes, path: Path, max_pixels: int) -> tuple[bytes, str]:
    """What is sent of an image with these bytes, and its MIME type.

    It is `source` itself where the image needs no bound. `path` is named in errors.
    Raises MediaError.
    """
    image, _, smaller = decode_checked(source, path, max_pixels)
    try:
        if smaller or (image.format in WEB_FORMATS and not needs_bound(image, max_pixels)):
            return source, WEB_FORMATS[str(image.format)]
        return as_png(bound(image, max_pixels)), "image/png"
    except MediaError as error:
        raise MediaError(f"{path}: {error}", error.reason) from None


def as_png(image: Image.Image) -> bytes:
    """A picture as a PNG, without loss."""
    buffer = io.BytesIO()
    # Level 2 takes a quarter of the default level's time and gives 5% more bytes.
    image.save(buffer, "PNG", compress_level=2)
    return buffer.getvalue()


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
