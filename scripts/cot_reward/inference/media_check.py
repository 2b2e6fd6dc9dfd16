"""Opens the images of a run before anything is asked (--dry-run): which records cannot be shown."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from tqdm import tqdm

from cot_reward.inference.ledger import Ledger
from cot_reward.media.images import inspect_image
from cot_reward.media.paths import ImageRoots, MediaError
from cot_reward.tasks.prompts import shown_media

# Images that are handed to the threads at a time: waiting ones cost memory, and time after Ctrl-C.
_IMAGES_PER_BATCH = 512


def records_with_bad_media(
    ledger: Ledger, roots: ImageRoots, max_pixels: int
) -> Iterator[dict[str, str]]:
    """`id`, `where`, `reason` and `detail` of each listed record with an image of no use.

    Each image is decoded once, in as many threads as there are cores.
    """
    faults = _faults(ledger, roots, max_pixels)
    for listed in ledger:
        media = shown_media(listed.comparison, "given")
        fault = next((faults[path] for path in media if path in faults), None)
        if fault:
            yield {"id": listed.key, "where": listed.where,
                   "reason": fault.reason, "detail": str(fault)}  # fmt: skip


def _faults(ledger: Ledger, roots: ImageRoots, max_pixels: int) -> dict[str, MediaError]:
    """The images that cannot be sent, by their paths below the media root."""

    def fault(path: str) -> MediaError | None:
        try:
            inspect_image(roots.file(path), max_pixels)
        except MediaError as error:
            return error
        return None

    paths = dict.fromkeys(
        path for listed in ledger for path in shown_media(listed.comparison, "given")
    )
    faults: dict[str, MediaError] = {}
    waiting = iter(paths)
    with (
        ThreadPoolExecutor(os.cpu_count() or 1) as pool,
        tqdm(total=len(paths), desc="images", unit=" images", disable=None) as bar,
    ):
        while batch := list(islice(waiting, _IMAGES_PER_BATCH)):
            for path, found in zip(batch, pool.map(fault, batch), strict=True):
                if found:
                    faults[path] = found
                bar.update()
    return faults
