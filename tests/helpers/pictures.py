"""Pictures in memory and on disk, what is sent of them, and the reason of a MediaError."""

import io
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cot_reward.media.images import EXIF_ORIENTATION
from cot_reward.media.paths import MediaError
from cot_reward.media.sent import MediaReader
from PIL import Image


def picture(path: Path, colour: tuple[int, int, int] = (200, 30, 30), size: int = 48) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size, size), colour).save(path)
    return path


def grey(light: int, size: int = 48) -> Image.Image:
    return Image.new("RGB", (size, size), (light,) * 3)


def as_bytes(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    """The file of an image."""
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def encoded(path: Path, max_pixels: int, cache_dir: Path | None) -> tuple[bytes, str]:
    """What a new reader would send of a file: bytes and MIME type."""
    with MediaReader(max_pixels, cache_dir) as reader:
        return reader.read(path)[1:]


def noise(mode: str, width: int, height: int, seed: int) -> Image.Image:
    """The same pixels from the same seed in every environment."""
    bands = {"RGB": 3, "RGBA": 4, "CMYK": 4, "LA": 2, "I;16": 2}.get(mode, 1)
    raw = random.Random(seed).randbytes(width * height * bands)
    if mode == "1":
        return Image.frombytes("L", (width, height), raw).convert("1")
    if mode == "I;16":
        # 10 bits: close to the 16-bit maximum Pillow 11 wraps around in a resize, and 13 does not.
        raw = bytes(byte & 3 if index % 2 else byte for index, byte in enumerate(raw))
    image = Image.frombytes(mode, (width, height), raw)
    if mode == "P":
        image.putpalette(random.Random(seed + 1).randbytes(768))
    return image


def saved(path: Path, image: Image.Image, **options: Any) -> Path:
    image.save(path, **options)
    return path


def reason_of(call: Callable[..., object], *arguments: Any) -> str:
    """The reason of the MediaError that a call raises; its message must not be empty."""
    with pytest.raises(MediaError) as caught:
        call(*arguments)
    assert str(caught.value)
    return caught.value.reason


# File name -> the image, and how to save it.
Pictures = dict[str, tuple[Image.Image, dict[str, Any]]]


def bounded_pictures() -> Pictures:
    """One picture for each reason why another picture than the file is sent."""
    rotated = Image.Exif()
    rotated[EXIF_ORIENTATION] = 6
    return {
        "large.jpg": (noise("RGB", 1000, 700, 0), {}),
        "small.png": (noise("RGB", 20, 100, 0), {}),
        "alpha.png": (noise("RGBA", 100, 100, 0), {}),
        "alpha.webp": (noise("RGBA", 100, 100, 0), {"lossless": True}),
        "grey_alpha.png": (noise("LA", 100, 100, 0), {}),
        "palette.png": (noise("P", 100, 100, 0), {}),
        "palette_alpha.png": (noise("P", 100, 100, 0), {"transparency": 3}),
        "colour_key.png": (Image.new("RGB", (100, 100), "red"), {"transparency": (255, 0, 0)}),
        "rotated.jpg": (noise("RGB", 200, 100, 0), {"exif": rotated}),
        "cmyk.jpg": (noise("CMYK", 100, 100, 0), {}),
        "deep.png": (noise("I;16", 100, 100, 0), {}),
        "format.bmp": (noise("RGB", 100, 100, 0), {}),
        "format.gif": (noise("P", 100, 100, 0), {}),
    }


def unchanged_pictures() -> Pictures:
    """Pictures of which the file itself is sent."""
    return {
        "colour.jpg": (noise("RGB", 300, 200, 0), {}),
        "grey.jpg": (noise("L", 300, 200, 0), {}),
        "colour.png": (noise("RGB", 300, 200, 0), {}),
        "colour.webp": (noise("RGB", 300, 200, 0), {}),
    }
