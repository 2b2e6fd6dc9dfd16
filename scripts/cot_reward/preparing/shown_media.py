"""Media of raw comparisons -> files below the media root: images, and frames of videos."""

import os
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from cot_reward.media.embedded import embedded, write_medium
from cot_reward.media.images import IMAGE_ENDINGS
from cot_reward.media.paths import MediaError, media_path, resolve
from cot_reward.media.video import VIDEO_ENDINGS, frame_numbers, frames_of
from cot_reward.records import Task

_NUMBER = re.compile(r"([0-9]+)")


class MediaFiles:
    """Finds or makes the files of media. Safe to use from several threads.

    Media that stand in rows are written to `media/` below the media root, and frames to `frames/`,
    named by their content: one medium is one file for all data sets, so that a comparison has the
    same identity wherever it comes from, and a stopped run need not write it again.
    """

    def __init__(self, media_root: Path, prefix: str, frames: int, max_pixels: int) -> None:
        self._root, self._prefix = media_root, prefix
        self._frames, self._max_pixels = frames, max_pixels
        self._real_root = media_root.resolve()

    def image(self, value: Any) -> str:
        """The path of an image below the media root. Raises ValueError and MediaError."""
        data = embedded(value)
        if data is not None:
            path = self._name(write_medium(data, self._root / "media"))
        else:
            path = media_path(_path(value), self._prefix)
        if _is_video(path):
            raise ValueError(f"{path:.200} is a video, and an image is needed")
        if data is None:
            resolve(path, self._root)
        return path

    def video(self, value: Any) -> tuple[str, ...]:
        """The paths of a video's frames below the media root.

        The value is a video, a folder of pictures, or a list of pictures. Raises ValueError and
        MediaError.
        """
        if isinstance(value, list | tuple):
            return self._evenly([self.image(frame) for frame in value])
        data = embedded(value)
        if data is not None:
            return self._of_file(write_medium(data, self._root / "media"))
        path = media_path(_path(value), self._prefix)
        named = self._root / path
        # A name may be too long for a file system.
        if not os.path.isdir(named):
            return self._of_file(resolve(path, self._root))
        names = [
            entry.name
            for entry in named.iterdir()
            if entry.suffix.lower() in IMAGE_ENDINGS and not entry.name.startswith(".")
        ]
        frames = [f"{path}/{name}" for name in sorted(names, key=in_order)]
        for frame in frames:
            resolve(frame, self._root)
        return self._evenly(frames)

    def context(self, values: Sequence[Any], task: Task) -> list[str]:
        """The media that a question or an instruction is about."""
        if task.medium != "video":
            return [self.image(value) for value in values]
        # A list of frames, or one video.
        return list(self.video(values[0] if len(values) == 1 else list(values)))

    def _of_file(self, file: Path) -> tuple[str, ...]:
        if file.suffix.lower() in IMAGE_ENDINGS and file.suffix.lower() != ".gif":
            raise ValueError(f"{file.name:.200} is a picture, and a video is needed")
        frames = frames_of(file, self._root / "frames", self._frames, self._max_pixels)
        return tuple(map(self._name, frames))

    def _evenly(self, frames: list[str]) -> tuple[str, ...]:
        if not frames:
            raise MediaError("a video without frames", "empty")
        return tuple(frames[number] for number in frame_numbers(len(frames), self._frames))

    def _name(self, file: Path) -> str:
        return file.resolve().relative_to(self._real_root).as_posix()


def _is_video(name: str) -> bool:
    """Whether it can only be a video, by its ending; a GIF may be an image as well."""
    return PurePosixPath(name).suffix.lower() in VIDEO_ENDINGS


def in_order(name: str) -> list[Any]:
    """What sorts names as people count: 2.png comes before 10.png."""
    # Texts and numbers alternate, so that like is compared with like.
    return [int(part) if place % 2 else part for place, part in enumerate(_NUMBER.split(name))]


def _path(value: Any) -> Any:
    """The path in an image struct of `datasets`; any other value as it is."""
    return value.get("path") if isinstance(value, dict) else value
