"""Small copies of the pictures that a page shows, in the page itself or beside it."""

import base64
import hashlib
import io
import os
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
            try:
                picture = resolve(path, self._root)
                if inside:
                    data = base64.b64encode(_thumbnail(picture)).decode()
                    return f"data:image/jpeg;base64,{data}"
                changed = picture.stat().st_mtime_ns
                file = folder / f"{self._names[path]}.jpg"
                # A thumbnail has the time of its picture: a replaced picture gets a new one.
                if not file.exists() or file.stat().st_mtime_ns != changed:
                    thumbnail = _thumbnail(picture)
                    file.write_bytes(thumbnail)
                    os.utime(file, ns=(changed, changed))
            except (MediaError, ValueError):
                return ""
            return f"{folder.name}/{file.name}"

        with ThreadPoolExecutor(workers) as pool:
            made = pool.map(make, self._names)
            bar = tqdm(made, "thumbnails", len(self._names), unit=" pictures", disable=None)
            return {
                name: address
                for name, address in zip(self._names.values(), bar, strict=True)
                if address
            }


def _thumbnail(picture: Path) -> bytes:
    """A JPEG. Raises what `load_image` raises."""
    image = load_image(picture).convert("RGB")
    image.thumbnail((_SIDE, _SIDE))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()
