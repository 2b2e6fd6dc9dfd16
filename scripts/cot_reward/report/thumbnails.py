"""Small copies of the pictures that a page shows, in the page itself or beside it."""

import base64
import hashlib
import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from cot_reward.media.images import load_image
from cot_reward.media.paths import MediaError, resolve

_SIDE = 224
_QUALITY = 82
# So many pictures are part of the page; more lie beside it.
MOST_INSIDE = 120


class Thumbnails:
    """Names for thumbnails by the path of their picture, which `write` makes."""

    def __init__(self, media_root: Path) -> None:
        self._root = media_root
        self._names: dict[str, str] = {}

    def name(self, path: str) -> str:
        """What stands for a picture until `write` tells where its thumbnail is."""
        if path not in self._names:
            self._names[path] = hashlib.sha256(path.encode()).hexdigest()[:20]
        return self._names[path]

    def write(self, folder: Path, workers: int) -> dict[str, str]:
        """Name -> address of each thumbnail; a picture that cannot be opened has none.

        `folder` is beside the page, and is made where there are many. Raises OSError.
        """
        inside = len(self._names) <= MOST_INSIDE
        if not inside:
            folder.mkdir(parents=True, exist_ok=True)

        def make(path: str) -> str:
            file = folder / f"{self._names[path]}.jpg"
            if not inside and file.exists():
                return f"{folder.name}/{file.name}"
            data = _thumbnail(path, self._root)
            if inside or not data:
                return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}" if data else ""
            file.write_bytes(data)
            return f"{folder.name}/{file.name}"

        with ThreadPoolExecutor(workers) as pool:
            made = pool.map(make, self._names)
            bar = tqdm(made, "thumbnails", len(self._names), unit=" pictures", disable=None)
            return {
                name: address
                for name, address in zip(self._names.values(), bar, strict=True)
                if address
            }


def _thumbnail(path: str, root: Path) -> bytes:
    """A JPEG; empty for a picture that cannot be opened."""
    try:
        image = load_image(resolve(path, root)).convert("RGB")
    except (MediaError, ValueError):
        return b""
    image.thumbnail((_SIDE, _SIDE))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()
