"""Images: open, check, and bound to the one pixel limit.

The same pixels must reach the model in all three stages. LLaMA-Factory drops an alpha channel and
ignores EXIF orientation, while vLLM and recent transformers lay alpha on white and rotate by EXIF.
`bound` does what LLaMA-Factory does. Its result has neither alpha nor EXIF, so later readers agree.
"""

import contextlib
import hashlib
import io
import math
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, TypeVar

import PIL
from PIL import Image, ImageFile, UnidentifiedImageError

from cot_reward.media.paths import LFS_POINTER, MediaError, lfs_error
from cot_reward.media.seen import SeenFiles

T = TypeVar("T")

# `image_max_pixels` of the training configurations: 512 x 512.
MAX_PIXELS = 262_144
# LLaMA-Factory's default `image_min_pixels`, which no configuration here changes: 32 x 32.
MIN_PIXELS = 32 * 32
# The largest image that is decoded: Pillow's default limit against decompression bombs.
MAX_SOURCE_PIXELS = 178_956_970
# The largest file that is read.
MAX_BYTES = 2**28

# What a check of an image is; another Pillow may refuse other files. Raise the number when the
# limits above or the formats below change.
_CHECK = f"1 pillow {PIL.__version__}".encode()

# Formats that are read. The list keeps Pillow from trying rare decoders on unknown bytes; its EPS
# decoder, for example, starts Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
# What names of images end with.
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
# Formats of which the file itself may be sent.
WEB_FORMATS = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp"}
# Modes that every reader turns into the same RGB pixels.
PLAIN_MODES = ("RGB", "L")

EXIF_ORIENTATION = 0x0112


def _decode(
    stream: IO[bytes], path: Path, prepare: Callable[[Image.Image], None] | None = None
) -> Image.Image:
    """A fully decoded image; `path` is named in errors.

    `prepare` is called after the header is read. Raises MediaError.
    """
    # Some libraries set this for the whole process; a truncated image would then be no error.
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
        stream.seek(0)
        if stream.read(len(LFS_POINTER)) == LFS_POINTER:
            raise lfs_error(path) from None
        raise MediaError(
            f"{path}: not an image, whatever its name says (read are {', '.join(FORMATS)}); "
            "replace the file, or leave the row out",
            "not_an_image",
        ) from None
    except Exception as error:
        if "MAX_TEXT_" in str(error):
            # Servers and trainers open images with Pillow, too, so that reading it here helps none.
            raise MediaError(
                f"{path}: texts inside the PNG (often the workflow that made it) are larger than "
                "Pillow reads; save the image without them (exiftool -all= FILE), or leave the row "
                "out",
                "metadata",
            ) from None
        # On broken data Pillow's decoders raise nearly anything: OSError, SyntaxError,
        # struct.error, zlib.error, IndexError, ...
        raise MediaError(
            f"{path}: broken or cut short ({error}); fetch the file again, or leave the row out",
            "corrupt",
        ) from None
    return image


def read_file(path: Path, read: Callable[[IO[bytes]], T]) -> T:
    """The result of `read` on the open file.

    Raises MediaError for a file that is missing, unreadable, empty or too large.
    """
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
    """The image in a file (of an animation the first frame). Raises MediaError.

    It is fully decoded, because `verify()` accepts a truncated JPEG.
    """
    return read_file(path, lambda stream: _decode(stream, path))


# Pillow reads the pixels of a picture when they are first asked for. Of two threads that ask at the
# same time each would get a part of them.
_LOADING = threading.Lock()


def loaded_copy(image: Image.Image, path: Path) -> Image.Image:
    """A decoded copy of a picture in memory, held to what `load_image` holds a file to.

    `path` is named in errors. Raises MediaError.
    """
    # A picture that Pillow opened knows its format; its pixels may not have been read yet.
    if image.format not in (None, "MPO", *FORMATS):
        raise MediaError(f"{path}: {image.format} (read are {', '.join(FORMATS)})", "not_an_image")
    if image.width * image.height > MAX_SOURCE_PIXELS:
        raise MediaError(f"{path}: more than {MAX_SOURCE_PIXELS:,} pixels; shrink it", "too_large")
    if not image.width * image.height:
        raise MediaError(f"{path}: empty ({image.width} x {image.height} pixels)", "empty")
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        with _LOADING:
            image.load()
        return image.copy()
    except MemoryError:
        raise
    except Exception as error:
        raise MediaError(f"{path}: broken or cut short ({error})", "corrupt") from None


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
    """The sizes (width, height) of the resizes that bring the area within limits; often none."""
    sizes = []
    if width * height > max_pixels:
        width, height = _scaled(width, height, max_pixels)
        sizes.append((width, height))
    if width * height < MIN_PIXELS:
        width, height = _scaled(width, height, MIN_PIXELS)
        sizes.append((width, height))
    return sizes


def _side_sizes(width: int, height: int) -> list[tuple[int, int]]:
    """The sizes (width, height) of the resizes that bring the sides within limits; often none."""
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
    default `image_min_pixels`. The area is resized in the image's own mode, the sides after the
    conversion to RGB; each resize uses Pillow's default filter for the mode. LLaMA-Factory keeps
    the metadata; `bound` removes them, because transparency or an EXIF orientation would make
    transformers and vLLM change the pixels. Both make 16-bit grey images almost white: convert
    these to 8 bits beforehand.

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
    """Whether a reader of the original file may see other pixels than those of `bound`.

    It may when `bound` changes the size, and when the file has an alpha channel, a transparent
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
    except Exception:  # readers treat broken metadata differently
        return True
    return False


def decode_checked(
    source: bytes, path: Path, max_pixels: int
) -> tuple[Image.Image, tuple[int, int], bool]:
    """A file's image, its real size, and whether the image is decoded at a smaller size.

    A JPEG that needs no bound is decoded at an eighth of its size: this reads all of its data and
    finds the same faults in 6/10 of the time. Raises MediaError.
    """
    size, smaller = (0, 0), False

    def prepare(image: Image.Image) -> None:
        nonlocal size, smaller
        size = image.size
        with contextlib.suppress(MediaError):  # `bound` will raise it again
            if image.format == "JPEG" and not needs_bound(image, max_pixels):
                image.draft(None, (max(1, image.width // 8), max(1, image.height // 8)))
                smaller = True

    return _decode(io.BytesIO(source), path, prepare), size, smaller


def inspect_image(
    path: Path, max_pixels: int = MAX_PIXELS, seen: SeenFiles | None = None
) -> tuple[str, tuple[int, int]]:
    """The sha256 of a file's bytes (hexadecimal), and the image's (width, height) after `bound`.

    A content that is sound is noted in `seen`, and not decoded again. Raises MediaError for a file
    that `load_image` or `bound` refuses.
    """
    source = read_file(path, lambda stream: stream.read())
    digest = hashlib.sha256(source)
    key = digest.digest() + _CHECK
    noted = re.fullmatch(r"([1-9]\d{0,8})x([1-9]\d{0,8})", seen.get(key)) if seen else None
    if noted:
        size = int(noted[1]), int(noted[2])
    else:
        _, size, _ = decode_checked(source, path, max_pixels)
        if seen:
            seen.add(key, "{}x{}".format(*size))
    try:
        size = [size, *_area_sizes(*size, max_pixels)][-1]
        size = [size, *_side_sizes(*size)][-1]
    except MediaError as error:
        raise MediaError(f"{path}: {error}", error.reason) from None
    return digest.hexdigest(), size
