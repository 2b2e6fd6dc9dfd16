"""Images: open, check, and bound to the one pixel limit.

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
from collections.abc import Callable
from pathlib import Path
from typing import IO, TypeVar

from PIL import Image, ImageFile, UnidentifiedImageError

from cot_reward.media.paths import MediaError

T = TypeVar("T")

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


def read_file(path: Path, read: Callable[[IO[bytes]], T]) -> T:
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


def load_image(path: Path) -> Image.Image:
    """The image in a file, fully decoded (`verify()` would pass a truncated JPEG).

    Of an animation it is the first frame. Raises MediaError.
    """
    return read_file(path, lambda stream: _decode(stream, path))


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


def decode_checked(
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


def inspect_image(path: Path, max_pixels: int = MAX_PIXELS) -> tuple[str, tuple[int, int]]:
    """The sha256 of an image file's bytes, and the width and height that `bound` gives the image.

    Raises MediaError for a file that `load_image` or `bound` would refuse.
    """
    source = read_file(path, lambda stream: stream.read())
    _, size, _ = decode_checked(source, path, max_pixels)
    try:
        size = [size, *_area_sizes(*size, max_pixels)][-1]
        size = [size, *_side_sizes(*size)][-1]
    except MediaError as error:
        raise MediaError(f"{path}: {error}", error.reason) from None
    return hashlib.sha256(source).hexdigest(), size
