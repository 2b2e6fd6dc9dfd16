"""Media of raw comparisons -> files below the media root: images, and frames of videos."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cot_reward.media.embedded import embedded, write_medium
from cot_reward.media.paths import MediaError, media_path, resolve
from cot_reward.media.video import VIDEO_ENDINGS, frame_numbers, frames_of
from cot_reward.records import Task

_IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")


class MediaFiles:
    """Finds or makes the files of media. Safe to use from several threads.

    Media that stand in rows, and frames, are written below `folder`, named by their content, so
    that a medium of several rows is one file and a stopped run need not write it again.
    """

    def __init__(
        self, media_root: Path, prefix: str, folder: Path, frames: int, max_pixels: int
    ) -> None:
        self._root, self._prefix, self._folder = media_root, prefix, folder
        self._frames, self._max_pixels = frames, max_pixels
        self._real_root = media_root.resolve()

    def image(self, value: Any) -> str:
        """The path of an image below the media root. Raises ValueError and MediaError."""
        data = embedded(value)
        if data is not None:
            return self._name(write_medium(data, self._folder / "media"))
        path = media_path(_path(value), self._prefix)
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
            return self._of_file(write_medium(data, self._folder / "media"))
        path = media_path(_path(value), self._prefix)
        named = self._root / path
        if named.is_dir():
            names = sorted(
                entry.name for entry in named.iterdir() if entry.suffix.lower() in _IMAGE_ENDINGS
            )
            frames = [f"{path}/{name}" for name in names]
            for frame in frames:
                resolve(frame, self._root)
            return self._evenly(frames)
        file = resolve(path, self._root)
        if file.suffix.lower() not in VIDEO_ENDINGS and file.suffix.lower() in _IMAGE_ENDINGS:
            raise ValueError(f"{path} is a picture, and the task is about videos")
        return self._of_file(file)

    def context(self, values: Sequence[Any], task: Task) -> list[str]:
        """The media that a question or an instruction is about."""
        if task.medium != "video":
            return [self.image(value) for value in values]
        # A list of frames, or one video.
        return list(self.video(values[0] if len(values) == 1 else list(values)))

    def _of_file(self, file: Path) -> tuple[str, ...]:
        frames = frames_of(file, self._folder / "frames", self._frames, self._max_pixels)
        return tuple(map(self._name, frames))

    def _evenly(self, frames: list[str]) -> tuple[str, ...]:
        if not frames:
            raise MediaError("a video without frames", "empty")
        return tuple(frames[number] for number in frame_numbers(len(frames), self._frames))

    def _name(self, file: Path) -> str:
        return file.resolve().relative_to(self._real_root).as_posix()


def _path(value: Any) -> Any:
    """The path in an image struct of `datasets`; any other value as it is."""
    return value.get("path") if isinstance(value, dict) else value
