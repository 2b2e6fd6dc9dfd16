"""Rows of prompts with images: what is wrong with them, and their images and messages for TRL."""

import os
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from PIL import Image

from cot_reward.errors import UserError
from cot_reward.media.images import bound, inspect_image, load_image
from cot_reward.media.paths import MediaError, resolve
from cot_reward.media.seen import SeenFiles
from cot_reward.rows.reading import row_noun

_PROBLEMS_SHOWN = 10


def without_null_keys(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages without the keys that Arrow added to their content parts.

    In Arrow every part has every key: an image part comes back as {"type": "image", "text": None},
    and a chat template may look for keys rather than for the type.
    """
    return [
        message
        | {
            "content": [
                {key: value for key, value in part.items() if value is not None}
                for part in message["content"]
            ]
        }
        for message in messages
    ]


def open_image(path: str, folder: Path, max_pixels: int) -> Image.Image:
    """The image as the model is shown it. Raises UserError for one that cannot be opened."""
    try:
        return bound(load_image(resolve(path, folder)), max_pixels)
    except MediaError as error:
        raise UserError(str(error)) from None


def inspect_images(
    images: Collection[str], folder: Path, max_pixels: int, seen_images: Path | None = None
) -> dict[str, tuple[str, tuple[int, int]] | str]:
    """Each image's digest and size as shown, or what is wrong with it.

    Every one is read, and decoded unless the database `seen_images` has its content.
    """
    names = sorted(images)
    with (
        SeenFiles(seen_images) if seen_images else nullcontext() as seen,
        ThreadPoolExecutor(os.cpu_count()) as threads,
    ):

        def inspect(image: str) -> tuple[str, tuple[int, int]] | str:
            try:
                return inspect_image(resolve(image, folder), max_pixels, seen)
            except MediaError as error:
                return str(error)

        return dict(zip(names, threads.map(inspect, names), strict=True))


def describe_problems(path: Path, problems: Mapping[int, str], total: int) -> str:
    """How many rows are bad, and the first ten with their places."""
    first = sorted(problems.items())[:_PROBLEMS_SHOWN]
    place = row_noun(path)
    shown = "".join(f"\n  {place} {number}: {what}" for number, what in first)
    more = (
        f"\n  and {len(problems) - _PROBLEMS_SHOWN} more" if len(problems) > _PROBLEMS_SHOWN else ""
    )
    return (
        f"{path}: {len(problems)} of {total} rows cannot be used:{shown}{more}\n"
        "mend them, or leave them out with --skip_bad_rows"
    )


def printable(text: str) -> str:
    """The text with control characters escaped: paths come from data and reach a terminal."""
    return text if text.isprintable() else text.encode("unicode_escape").decode()
