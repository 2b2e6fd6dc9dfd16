"""Paths of media: from a raw row to the media root, and from there to a real file inside it."""

import os
import posixpath
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path, PurePath
from typing import Any, Literal

from cot_reward.errors import UserError

Reason = Literal["missing", "escapes", "corrupt", "empty", "too_large", "not_an_image"]


class MediaError(Exception):
    """A medium that cannot be used. `reason` says why in a word, the message what to do."""

    def __init__(self, message: str, reason: Reason) -> None:
        super().__init__(message, reason)
        self.message = message
        self.reason: Reason = reason

    def __str__(self) -> str:
        return self.message


class EscapeError(ValueError):
    """A media path that leads out of its root; `reason` is the word for it in failed.jsonl."""

    reason = "escapes"


def media_prefix(image_root: Path, media_root: Path) -> str:
    """The path of the image root below the media root ("" when they are the same).

    Raises UserError when the image root is not inside the media root.
    """
    try:
        prefix = image_root.resolve().relative_to(media_root.resolve()).as_posix()
    except ValueError:
        raise UserError(
            f"--image-root {image_root} is not inside --media-root {media_root}; "
            "move or link the images below the media root"
        ) from None
    return "" if prefix == "." else prefix


class ImageRoots:
    """The image roots of a run, below its media root: which of them a path has to stay in."""

    def __init__(self, media_root: Path, image_roots: Sequence[Path]) -> None:
        self._media_root = media_root
        prefixes = [(media_prefix(root, media_root), root) for root in image_roots]
        # The deepest one first.
        self._roots = sorted(prefixes, key=lambda entry: -len(entry[0]))

    def file(self, path: str) -> Path:
        """The real file of a path below the media root. Raises MediaError as `resolve` does."""
        within = next(
            (root for prefix, root in self._roots if not prefix or path.startswith(prefix + "/")),
            self._media_root,
        )
        return resolve(path, self._media_root, within)


def media_path(path: Any, prefix: str) -> str:
    """A path below the image root as a path below the media root.

    Raises ValueError for a path that names no file, EscapeError for one that leads out.
    """
    if not isinstance(path, str) or not path:
        raise ValueError(f"a media path must be a string, not {path!r:.60}")
    path = posixpath.normpath(path)
    if path == "." or "\0" in path:
        raise ValueError(f"the path {path!r:.60} names no file")
    if path.startswith(("/", "../")) or path == "..":
        raise EscapeError(f"the path {path!r} leads out of the image root")
    return posixpath.normpath(posixpath.join(prefix, path))


# Cached, because the roots do not change during a run.
_real_path = lru_cache(maxsize=64)(os.path.realpath)


def resolve(path: str, root: Path, within: Path | None = None) -> Path:
    """The real file of a path relative to `root`; it must lie below `within`, too.

    Raises MediaError: "escapes" for an absolute path, and for a path that leaves the root by `..`
    or by a link; "missing" when there is no such file.
    """
    if PurePath(path).is_absolute():
        raise MediaError(
            f"{path}: an absolute path; media paths are relative to the media root {root}",
            "escapes",
        )
    try:
        roots = {_real_path(os.path.abspath(folder)) for folder in (root, within or root)}
        # os.path takes a third of the time of `Path.resolve`.
        real = os.path.realpath(os.path.join(root, path))
        inside = all(f"{real}/".startswith(f"{folder.rstrip('/')}/") for folder in roots)
        found = os.path.isfile(real)
    except (OSError, ValueError, RuntimeError) as error:  # name too long, NUL byte, loop of links
        raise MediaError(f"{path!r}: not a usable file name: {error}", "missing") from None
    if not inside:
        place = f"image root {within}" if within else f"media root {root}"
        raise MediaError(f"{path}: leads out of the {place}; move the file below it", "escapes")
    if not found:
        raise MediaError(
            f"{path}: no such file below the media root {root}; "
            "put it there, or name another media root (--media-root; of stage 3: --image_folder)",
            "missing",
        )
    return Path(real)
