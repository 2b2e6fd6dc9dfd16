"""Images: keep paths inside their root, open, bound to the one pixel limit, and encode.

The same pixels must reach the model in all three stages. LLaMA-Factory drops an alpha channel and
ignores EXIF orientation, while vLLM and recent transformers lay alpha on white and rotate by EXIF.
`bound` does what LLaMA-Factory does, and its result carries neither, so that no reader after it can
differ.
"""

import contextlib
import hashlib
import io
import math
import os
import sqlite3
import threading
import uuid
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path, PurePath
from typing import IO, Literal, TypeVar

from PIL import Image, ImageFile, UnidentifiedImageError

T = TypeVar("T")

Reason = Literal["missing", "escapes", "corrupt", "empty", "too_large", "not_an_image"]

# image_max_pixels of the training configurations: 512 x 512.
MAX_PIXELS = 262_144
# LLaMA-Factory's default image_min_pixels, which no configuration here changes: 32 x 32.
MIN_PIXELS = 32 * 32
# Largest source that is decoded; Pillow's own default for refusing a decompression bomb.
MAX_SOURCE_PIXELS = 178_956_970
# Largest file that is read.
MAX_BYTES = 2**28

# Formats that are read. A list keeps Pillow from trying rare decoders on unknown bytes; its EPS
# reader, for one, starts Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
# Formats whose bytes may travel as they are.
WEB_FORMATS = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp"}
# Modes that every reader turns into the same RGB pixels.
PLAIN_MODES = ("RGB", "L")

EXIF_ORIENTATION = 0x0112


class MediaError(Exception):
    """A medium that cannot be used. `reason` says why in a word, the message how to mend it."""

    def __init__(self, message: str, reason: Reason) -> None:
        super().__init__(message, reason)
        self.message = message
        self.reason: Reason = reason

    def __str__(self) -> str:
        return self.message


# A run's roots stay what they were at its start.
_real = lru_cache(maxsize=64)(os.path.realpath)


def resolve(path: str, root: Path, within: Path | None = None) -> Path:
    """The real file that `path`, relative to `root`, names; it must lie below `within`, too.

    Raises MediaError: "escapes" for an absolute path, and for one that leaves the root by `..` or
    by a link; "missing" when there is no such file.
    """
    if PurePath(path).is_absolute():
        raise MediaError(
            f"{path}: an absolute path; media paths are relative to the media root {root}",
            "escapes",
        )
    try:
        roots = {_real(os.path.abspath(folder)) for folder in (root, within or root)}
        # A third of the time of `Path.resolve`.
        real = os.path.realpath(os.path.join(root, path))
        inside = all(f"{real}/".startswith(f"{folder.rstrip('/')}/") for folder in roots)
        found = os.path.isfile(real)
    except (OSError, ValueError, RuntimeError) as error:  # name too long, NUL byte, loop of links
        raise MediaError(f"{path!r}: not a usable file name: {error}", "missing") from None
    if not inside:
        place = f"image root {within}" if within else f"media root {root}"
        raise MediaError(f"{path}: leads out of the {place}; move the file below it", "escapes")
    if not found:
        raise MediaError(
            f"{path}: no such file below the media root {root}; "
            "put it there, or name another root with --media-root",
            "missing",
        )
    return Path(real)


def _decode(
    stream: IO[bytes], path: Path, prepare: Callable[[Image.Image], None] | None = None
) -> Image.Image:
    """A fully decoded image; `path` is named in errors.

    `prepare` is called when the header has been read.
    """
    # Some libraries set this for the whole process, and then a half image passes as a whole one.
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        image = Image.open(stream, formats=FORMATS)
        if image.width * image.height > MAX_SOURCE_PIXELS:
            raise Image.DecompressionBombError
        if prepare:
            prepare(image)
        image.load()
    except MemoryError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise MediaError(
            f"{path}: more than {MAX_SOURCE_PIXELS:,} pixels; "
            "shrink the image, or leave the row out",
            "too_large",
        ) from None
    except UnidentifiedImageError:
        raise MediaError(
            f"{path}: not an image, whatever its name says (read are {', '.join(FORMATS)}); "
            "replace the file, or leave the row out",
            "not_an_image",
        ) from None
    except Exception as error:
        # On broken data Pillow's decoders raise nearly anything: OSError, SyntaxError,
        # struct.error, zlib.error, IndexError, ...
        raise MediaError(
            f"{path}: broken or cut short ({error}); fetch the file again, or leave the row out",
            "corrupt",
        ) from None
    return image


def _read(path: Path, read: Callable[[IO[bytes]], T]) -> T:
    """`read` of the open file; a file that is not there, unreadable or empty is a MediaError."""
    try:
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            if size > MAX_BYTES:
                raise MediaError(
                    f"{path}: {size:,} bytes, more than {MAX_BYTES:,}; "
                    "shrink the image, or leave the row out",
                    "too_large",
                )
            if not size:
                raise MediaError(
                    f"{path}: empty (0 bytes); fetch the file again, or leave the row out", "empty"
                )
            return read(stream)
    except OSError as error:
        raise MediaError(
            f"{path}: cannot be read ({error.strerror}); check the path and its permissions",
            "missing",
        ) from None


def load(path: Path) -> Image.Image:
    """The image in a file, fully decoded (`verify()` would pass a truncated JPEG).

    Of an animation it is the first frame. Raises MediaError.
    """
    return _read(path, lambda stream: _decode(stream, path))


def _scaled(width: int, height: int, pixels: int) -> tuple[int, int]:
    """Width and height for an area of `pixels`, rounded down. Raises MediaError when one is 0."""
    factor = math.sqrt(pixels / (width * height))
    size = int(width * factor), int(height * factor)
    if not all(size):
        raise MediaError(
            f"an image of {width} x {height} pixels is too thin to scale to {pixels:,} pixels; "
            "leave the row out",
            "too_large",
        )
    return size


def _area_sizes(width: int, height: int, max_pixels: int) -> list[tuple[int, int]]:
    """The sizes (width, height) that bring the area within its limits, in turn; often none."""
    sizes = []
    if width * height > max_pixels:
        width, height = _scaled(width, height, max_pixels)
        sizes.append((width, height))
    if width * height < MIN_PIXELS:
        width, height = _scaled(width, height, MIN_PIXELS)
        sizes.append((width, height))
    return sizes


def _side_sizes(width: int, height: int) -> list[tuple[int, int]]:
    """The sizes (width, height) that give both sides their minimum and ratio; often none."""
    sizes = []
    if min(width, height) < 28:
        width, height = max(width, 28), max(height, 28)
        sizes.append((width, height))
    if width / height > 200:
        width = height * 180
        sizes.append((width, height))
    if height / width > 200:
        height = width * 180
        sizes.append((width, height))
    return sizes


def bound(image: Image.Image, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The image as LLaMA-Factory shows it to the model: mode RGB, no metadata.

    Source: `_preprocess_image` of `MMPluginMixin` and then of `Qwen2VLPlugin` in
    llamafactory/data/mm_plugin.py, version 0.9.5, with `image_max_pixels` = `max_pixels` and the
    default `image_min_pixels`. The limits of area are kept in the image's own mode, those of the
    sides after the conversion to RGB; each resize uses Pillow's default filter for the mode. Theirs
    keeps the source's metadata; here it goes, since a transparency entry or an EXIF orientation
    would make transformers and vLLM change the pixels. 16-bit grey becomes almost all white, there
    as here: convert such images to 8 bits beforehand.

    Raises MediaError "too_large" for an image so thin that a side would become 0.
    """
    source = image
    for size in _area_sizes(*image.size, max_pixels):
        image = image.resize(size)
    if image.mode != "RGB":
        image = image.convert("RGB")
    for size in _side_sizes(*image.size):
        image = image.resize(size)
    if image is source:
        image = image.copy()
    image.info = {}
    return image


def needs_bound(image: Image.Image, max_pixels: int = MAX_PIXELS) -> bool:
    """Whether a reader of the original file would see other pixels than those of `bound`.

    That is so when `bound` changes the size, and when the file has an alpha channel, a transparent
    colour, an EXIF orientation or an unusual mode, which readers treat differently. Raises
    MediaError as `bound` does.
    """
    if _area_sizes(*image.size, max_pixels) or _side_sizes(*image.size):
        return True
    if image.mode not in PLAIN_MODES or "transparency" in image.info:
        return True
    try:
        if image.getexif().get(EXIF_ORIENTATION, 1) != 1:
            return True
    except Exception:  # broken metadata; readers differ in what they then do
        return True
    return False


def _checked(
    source: bytes, path: Path, max_pixels: int
) -> tuple[Image.Image, tuple[int, int], bool]:
    """A file's image, decoded whole, its real size, and whether it was decoded smaller than that.

    That is so for a JPEG that needs no bound: all its data are read at an eighth of its size, too,
    and the same faults found, in six tenths of the time.
    """
    size, smaller = (0, 0), False

    def prepare(image: Image.Image) -> None:
        nonlocal size, smaller
        size = image.size
        with contextlib.suppress(MediaError):  # it comes again when the image is bound
            if image.format == "JPEG" and not needs_bound(image, max_pixels):
                image.draft(None, (max(1, image.width // 8), max(1, image.height // 8)))
                smaller = True

    return _decode(io.BytesIO(source), path, prepare), size, smaller


def inspect(path: Path, max_pixels: int = MAX_PIXELS) -> tuple[str, tuple[int, int]]:
    """The sha256 of an image file's bytes, and the width and height that `bound` gives the image.

    Raises MediaError for a file that `load` or `bound` would refuse.
    """
    source = _read(path, lambda stream: stream.read())
    _, size, _ = _checked(source, path, max_pixels)
    try:
        size = [size, *_area_sizes(*size, max_pixels)][-1]
        size = [size, *_side_sizes(*size)][-1]
    except MediaError as error:
        raise MediaError(f"{path}: {error}", error.reason) from None
    return hashlib.sha256(source).hexdigest(), size


def _write_atomically(path: Path, data: bytes) -> None:
    """Write so that `path` never holds a part, whoever else writes it at the same time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    try:
        part.write_bytes(data)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


class _Seen:
    """Which contents travel as they are: sha256 and bound -> MIME type, in a database on disk.

    It only saves time, so that whatever is wrong with it is passed over, and what a kill loses of
    it is found again. Safe to use from several threads and processes.
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
        """One thread at a time; after an error the database is left alone, and free for others."""
        with self._lock:
            try:
                yield
            except sqlite3.Error:
                with contextlib.suppress(sqlite3.Error):
                    if self._database is not None:
                        self._database.close()
                self._database = None

    def get(self, key: bytes) -> str:
        """The MIME type; "" when the content is not known."""
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
            if len(self._new) >= 256:
                self._write()

    def _write(self) -> None:
        new, self._new = self._new, {}
        if self._database is not None:
            # At once: a transaction each would cost more than decoding.
            self._database.execute("BEGIN IMMEDIATE")
            self._database.executemany("INSERT OR IGNORE INTO seen VALUES (?, ?)", new.items())
            self._database.execute("COMMIT")

    def close(self) -> None:
        with self._use():
            self._write()
            if self._database is not None:
                self._database.close()
                self._database = None


class Reader:
    """Media as they are sent, each fully decoded once: what was found is kept by content.

    A JPEG, PNG or WebP that needs no bound travels as it is. Otherwise the bounded image travels as
    PNG, without loss. `cache_dir` has that PNG, or the note that the source travels as it is, under
    the source's sha256 and `max_pixels`; None: no cache. Safe to use from several threads and
    processes. Use as `with Reader(...) as reader`.
    """

    def __init__(self, max_pixels: int, cache_dir: Path | None) -> None:
        self.max_pixels, self.cache_dir = max_pixels, cache_dir
        self._seen = _Seen(cache_dir) if cache_dir is not None else None

    def read(self, path: Path) -> tuple[Path | None, bytes, str]:
        """The file that holds what is sent (None without a cache), its bytes and MIME type.

        Raises MediaError, and OSError when the cache cannot be written.
        """
        source = _read(path, lambda stream: stream.read())
        kept, key = None, b""
        if self.cache_dir is not None and self._seen is not None:
            digest = hashlib.sha256(source)
            key = digest.digest() + self.max_pixels.to_bytes(8, "big")
            if mime := self._seen.get(key):
                return path, source, mime
            kept = self.cache_dir / f"{digest.hexdigest()}-{self.max_pixels}.png"
            with contextlib.suppress(FileNotFoundError):
                return kept, kept.read_bytes(), "image/png"
        image, _, smaller = _checked(source, path, self.max_pixels)
        try:
            if smaller or (image.format in WEB_FORMATS and not needs_bound(image, self.max_pixels)):
                mime = WEB_FORMATS[str(image.format)]
                if self._seen is not None:
                    self._seen.add(key, mime)
                return path, source, mime
            image = bound(image, self.max_pixels)
        except MediaError as error:
            raise MediaError(f"{path}: {error}", error.reason) from None
        buffer = io.BytesIO()
        # Level 2 takes a quarter of the time of the default level and gives 5% more bytes.
        image.save(buffer, "PNG", compress_level=2)
        data = buffer.getvalue()
        if kept is not None:
            _write_atomically(kept, data)
        return kept, data, "image/png"

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._seen is not None:
            self._seen.close()
