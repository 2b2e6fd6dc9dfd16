"""Media that stand in the rows, as bytes or base64: written to files, named by their content."""

import binascii
import hashlib
import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pybase64
from PIL import Image, UnidentifiedImageError

from cot_reward.media.images import FORMATS, MAX_BYTES, MAX_PIXELS, decode_checked
from cot_reward.media.paths import MediaError
from cot_reward.store import write_cache_file

_DATA_URL = re.compile(r"data:[\w.+-]+/[\w.+-]+(?:;[\w=.+-]+)*?;base64,", re.ASCII)
# No path is so long without a dot, and no caption without a space.
_BASE64 = re.compile(r"[A-Za-z0-9+/\r\n]{256,}={0,2}\s*")
_VIDEOS = ("mp4", "webm", "avi")
# The form of MP4 holds pictures, too (AVIF, HEIC).
_BRANDS_OF_IMAGES = (
    b"avif", b"avis", b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1",
)  # fmt: skip
_ENDINGS = {"JPEG": "jpg", "MPO": "jpg", "TIFF": "tif", "PPM": "ppm"}


def embedded(value: Any) -> bytes | None:
    """The bytes of a medium that a value holds; None for a value that is something else.

    A medium is bytes, an image struct of `datasets` ({"bytes", "path"}), a data URL or base64.
    Raises ValueError for base64 that cannot be decoded.
    """
    if isinstance(value, Mapping):
        value = value.get("bytes")
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if not isinstance(value, str):
        return None
    opening = _DATA_URL.match(value)
    if opening is None and not _BASE64.fullmatch(value):
        return None
    try:
        return pybase64.b64decode(value[opening.end() if opening else 0 :])
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"a medium in base64 cannot be decoded: {error}") from None


def write_medium(data: bytes, folder: Path) -> Path:
    """The file of a medium below `folder`, written unless it is there.

    An image is decoded once, when it is written. Raises MediaError for bytes that are no image and
    no video of a known form, and OSError.
    """
    if not data:
        raise MediaError("a medium of 0 bytes", "empty")
    if len(data) > MAX_BYTES:
        raise MediaError(f"a medium of {len(data):,} bytes, more than {MAX_BYTES:,}", "too_large")
    digest = hashlib.sha256(data).hexdigest()
    ending = _ending(data)
    file = folder / digest[:2] / f"{digest}.{ending}"
    if not file.exists():
        if ending not in _VIDEOS:
            # Before it is written: a file that is there has been decoded.
            decode_checked(data, Path("a picture in the row"), MAX_PIXELS)
        write_cache_file(file, data)
    return file


def _ending(data: bytes) -> str:
    """What the name of a file with these bytes ends with. Raises MediaError."""
    if data[4:8] == b"ftyp" and data[8:12] not in _BRANDS_OF_IMAGES:
        return "mp4"
    if data[:4] == b"\x1aE\xdf\xa3":
        return "webm"
    if data[:4] == b"RIFF" and data[8:12] == b"AVI ":
        return "avi"
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            name = str(image.format)
    except UnidentifiedImageError:
        raise MediaError(
            f"{len(data):,} bytes that are no image ({', '.join(FORMATS)}) and no video (MP4, "
            "WebM, AVI)",
            "not_an_image",
        ) from None
    except Exception as error:
        # On broken data Pillow's decoders raise nearly anything.
        raise MediaError(f"a broken image ({error})", "corrupt") from None
    return _ENDINGS.get(name, name.lower())
