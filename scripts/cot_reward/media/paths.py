"""Paths of media: from a raw row to the media root, and from there to a real file inside it."""

import os
import posixpath
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path, PurePath
from typing import Any, Literal

from cot_reward.errors import UserError

Reason = Literal[
    "missing", "escapes", "corrupt", "empty", "too_large", "not_an_image", "lfs_pointer", "metadata"
]  # fmt: skip

# The beginning of the file that Git LFS leaves in place of a file that it has not fetched.
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
LFS_FAULT = "a Git LFS pointer, not the file itself; run 'git lfs pull' in its folder"

_ADDRESS = re.compile(r"\A(?:([A-Za-z][A-Za-z0-9+.-]*://)|data:)")
# A picture in base64: what JPEG and PNG files begin with.
_BASE64 = re.compile(r"\A(?:/9j/|iVBORw0KGgo)[A-Za-z0-9+/]{200}")
# The folder of one version of a repository in the cache of the Hugging Face hub.
_HUB_SNAPSHOT = re.compile(
    r"\A(.+/(?:datasets|models|spaces)--[^/]+)/snapshots/[0-9a-f]{40}(?:/|\Z)"
)
_HUB_BLOB = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")


class MediaError(Exception):
    """A medium that cannot be used. `reason` says why in a word, the message what to do."""

    def __init__(self, message: str, reason: Reason) -> None:
        super().__init__(message, reason)
        self.message = message
        self.reason: Reason = reason

    def __str__(self) -> str:
        return self.message


def lfs_error(path: Path) -> MediaError:
    """The error for a medium of which only the pointer of Git LFS is there."""
    return MediaError(f"{path}: {LFS_FAULT}", "lfs_pointer")


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


def path_fault(path: str) -> str:
    """What a media "path" is that is no path of a file below a folder; "" for one that may be.

    It is not shown, because all rows of a file have the same fault, and a data: address is long.
    """
    if address := _ADDRESS.match(path):
        return (
            f"an address ({address[1] or 'data:'}...), and rows name files; write each medium to a "
            "file, and its relative path into the row"
        )
    if _BASE64.match(path):
        return (
            "a picture in base64, and rows name files; write each picture to a file, and its "
            "relative path into the row"
        )
    return ""


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

    def holds(self, file: Path) -> bool:
        """Whether a real file lies below the media root, and not beside it in the hub's cache."""
        return _is_below(str(file), _real_path(os.path.abspath(self._media_root)))


def media_path(path: Any, prefix: str) -> str:
    """A path below the image root as a path below the media root.

    Raises ValueError for a path that names no file, EscapeError for one that leads out.
    """
    if not isinstance(path, str) or not path:
        raise ValueError(f"a media path must be a string, not {path!r:.60}")
    if fault := path_fault(path):
        raise ValueError(f"a media path is {fault}")
    path = posixpath.normpath(path)
    if path == "." or "\0" in path:
        raise ValueError(f"the path {path!r:.60} names no file")
    if path.startswith("/"):
        raise EscapeError(
            f"the path {path!r:.200} leads out of the image root: it is absolute, and paths are "
            "relative to this folder; take the folder off its front"
        )
    if path.startswith("../") or path == "..":
        raise EscapeError(f"the path {path!r} leads out of the image root")
    return posixpath.normpath(posixpath.join(prefix, path))


# Cached, because the roots do not change during a run.
_real_path = lru_cache(maxsize=64)(os.path.realpath)


def resolve(path: str, root: Path, within: Path | None = None) -> Path:
    """The real file of a path relative to `root`; it must lie below `within`, too.

    In a snapshot of the Hugging Face cache files are links to the contents that the cache keeps
    beside the snapshots; such a link is followed where the root is a snapshot, and no other one.
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
        named = os.path.join(root, path)
        real = os.path.realpath(named)
        inside = all(_is_below(real, folder) or _is_cached(named, real, folder) for folder in roots)
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


def _is_below(real: str, folder: str) -> bool:
    return f"{real}/".startswith(f"{folder.rstrip('/')}/")


def _is_cached(named: str, real: str, folder: str) -> bool:
    """Whether a name in a snapshot of the hub's cache is the cache's own link to this content.

    All of it must hold: the folder lies in a snapshot, the link itself lies in the folder, and it
    leads directly to a content, named by its hash, of the same repository.
    """
    snapshot = _HUB_SNAPSHOT.match(folder)
    if snapshot is None or not os.path.islink(named):
        return False
    blobs, name = os.path.split(real)
    return (
        _is_below(os.path.realpath(os.path.dirname(named)), folder)
        and blobs == f"{snapshot[1]}/blobs"
        and _HUB_BLOB.fullmatch(name) is not None
    )
