"""A picture in a request's JSON: a data URL or base64. No address and no path is ever opened."""

import binascii
import io
import re

import pybase64
from PIL import Image, UnidentifiedImageError

from cot_reward.service.refusals import RefusalError

# Fewer than files on disk may have: a few kilobytes of TIFF or AVIF can claim a small picture, and
# decode to gigabytes.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
# A progressive JPEG has some ten scans. Each one is decoded over the whole picture, and thousands
# fit into a file of 200 KB.
_SCAN, _MOST_SCANS = b"\xff\xda", 100
_DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,", re.ASCII)
# A scheme, or what only a path has: base64 has neither a colon nor a dot.
_ADDRESS_OR_PATH = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:|[^,]{0,4096}\.\w{1,5}\Z|[.~]")


def picture_bytes(text: str, where: str, max_pixels: int) -> bytes:
    """The bytes of a picture, whose header was read; it is not decoded here.

    `where` names it in errors. Raises RefusalError.
    """
    opening = _DATA_URL.match(text)
    if opening is None and _ADDRESS_OR_PATH.match(text):
        raise RefusalError(
            422, "not_a_picture",
            f"{where} is an address or a path, and this service opens neither; send the picture "
            "itself, as data:image/png;base64,... or as base64",
        )  # fmt: skip
    try:
        data = pybase64.b64decode(text[opening.end() if opening else 0 :], validate=True)
    except (binascii.Error, ValueError) as error:
        raise RefusalError(422, "bad_base64", f"{where} is no valid base64: {error}") from None
    if not data:
        raise RefusalError(422, "empty", f"{where} has 0 bytes")
    width, height, form = _header(data, where)
    if form in ("JPEG", "MPO") and data.count(_SCAN) > _MOST_SCANS:
        raise RefusalError(
            422, "corrupt", f"{where} is a JPEG of {data.count(_SCAN)} scans; save it again"
        )
    if width * height > max_pixels:
        raise RefusalError(
            422, "too_large",
            f"{where} has {width} x {height} pixels, and this service takes {max_pixels:,}; "
            "shrink it",
        )  # fmt: skip
    return data


def _header(data: bytes, where: str) -> tuple[int, int, str | None]:
    """Width, height and format by the header: a small file can claim any number of pixels."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return *image.size, image.format
    except UnidentifiedImageError:
        raise RefusalError(
            422, "not_an_image", f"{where} is no image; read are {', '.join(FORMATS)}"
        ) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise RefusalError(422, "too_large", f"{where} claims far too many pixels") from None
    except Exception as error:  # on broken data Pillow's decoders raise nearly anything
        raise RefusalError(422, "corrupt", f"{where} is broken ({error})") from None
