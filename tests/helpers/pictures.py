"""Pictures on disk, and what is sent of them."""

from pathlib import Path

from cot_reward.media.sent import MediaReader
from PIL import Image


def picture(path: Path, colour: tuple[int, int, int] = (200, 30, 30), size: int = 48) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size, size), colour).save(path)
    return path


def encoded(path: Path, max_pixels: int, cache_dir: Path | None) -> tuple[bytes, str]:
    """What a new reader would send of a file: bytes and MIME type."""
    with MediaReader(max_pixels, cache_dir) as reader:
        return reader.read(path)[1:]
