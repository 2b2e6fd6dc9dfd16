"""Flags that name files of rows: patterns, FILE@ROOT, and held-out files with their image roots."""

import glob
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from cot_reward.errors import UserError
from cot_reward.media.paths import media_prefix
from cot_reward.rows.reading import STDIN


class DataFile(NamedTuple):
    """A file of raw rows, and the folder that its media paths start at (None: none is named)."""

    path: Path
    image_root: Path | None


class HeldOutFile(NamedTuple):
    """`prefix` leads from the media root to what the paths in the file's raw rows start at."""

    path: Path
    prefix: str


def matching_files(pattern: str, flag: str) -> list[Path]:
    """The files that a pattern matches. Raises UserError for no match."""
    if "\0" in pattern:
        raise UserError(f"{flag} {pattern!r}: no name of a file")
    # The name of an existing file may look like a pattern.
    is_pattern = glob.has_magic(pattern) and not Path(pattern).exists()
    found = sorted(glob.glob(pattern, recursive=True)) if is_pattern else [pattern]
    if not found:
        raise UserError(f"{flag} {pattern}: no file matches")
    return list(map(Path, found))


def check_held_out_roots(
    patterns: Sequence[str], roots: Sequence[Path], flag: str = "--exclude"
) -> None:
    """Raise ValueError unless `roots` are none, one folder for all, or one for each pattern.

    `flag` names the patterns, and with -image-root behind it the roots.
    """
    if len(roots) not in (0, 1, len(patterns)):
        raise ValueError(
            f"{flag}-image-root names {len(roots)} folders for {len(patterns)} files or globs of "
            f"{flag}; give one for all, or one for each in the same order"
        )


def held_out_files(
    patterns: Sequence[str],
    roots: Sequence[Path],
    default_root: Path,
    media_root: Path,
    flag: str = "--exclude",
) -> list[HeldOutFile]:
    """The files of the flag, each once, with the root of each.

    `roots`: as `check_held_out_roots` takes them; without one it is `default_root`. Raises
    UserError for a pattern without a match, and for a root outside the media root.
    """
    roots = roots or [default_root]
    if len(roots) == 1:
        roots = [roots[0]] * len(patterns)
    found = [
        HeldOutFile(path, media_prefix(root, media_root))
        for pattern, root in zip(patterns, roots, strict=True)
        for path in matching_files(pattern, flag)
    ]
    return list(dict.fromkeys(found))


def data_files(names: Sequence[Path], image_roots: Sequence[Path]) -> list[DataFile]:
    """The files of --data, with the image root of each.

    A name is FILE or FILE@ROOT. `image_roots` (--image-root) has one folder for each file, or one
    for all files that name no root. Raises UserError for a root that is no folder, and when
    --image-root names another folder for a file than the file itself, or a folder that no file
    uses.
    """
    files = [_with_root(name) for name in names]
    if not any(file.image_root for file in files):
        roots: Sequence[Path | None] = image_roots or [None]
        roots = [roots[0]] * len(files) if len(roots) == 1 else roots
        return [DataFile(file.path, root) for file, root in zip(files, roots, strict=True)]
    if len(image_roots) == len(files):
        for file, root in zip(files, image_roots, strict=True):
            if file.image_root and not _same_folder(file.image_root, root):
                raise _contradiction(file, root)
        return [DataFile(file.path, root) for file, root in zip(files, image_roots, strict=True)]
    default = image_roots[0] if image_roots else None
    if default and not any(
        file.image_root is None or _same_folder(file.image_root, default) for file in files
    ):
        raise _contradiction(files[0], default)
    return [DataFile(file.path, file.image_root or default) for file in files]


def _contradiction(file: DataFile, root: Path) -> UserError:
    return UserError(
        f"--data {file.path}@{file.image_root}: --image-root (or image_root in the YAML file) says "
        f"{root} instead; leave one of the two out, or give the same folder"
    )


def _same_folder(first: Path, second: Path) -> bool:
    return first.resolve() == second.resolve()


def _with_root(name: Path) -> DataFile:
    """FILE or FILE@ROOT. The name of a file that is there may have an "@" itself."""
    text = str(name)
    if "@" not in text or name.exists():
        return DataFile(name, None)
    every = list(_splits(text))
    splits = [(file, root) for file, root in every if file == STDIN or file.exists()]
    if every and not splits:
        raise UserError(f"--data {text}: no such file, and no {every[0][0]} either (FILE@ROOT)")
    if not splits:
        # Reading it says that there is no such file.
        return DataFile(name, None)
    for file, root in splits:
        if root and Path(root).is_dir():
            return DataFile(file, Path(root))
    file, root = splits[0]
    what = f"{root} is no folder" if root else "no folder is named behind the @"
    raise UserError(
        f"--data {text}: {what}; FILE@ROOT names the folder that the media paths of {file} start at"
    )


def _splits(text: str) -> Iterator[tuple[Path, str]]:
    """What may be FILE and ROOT, at each "@" of the text, the longest file first."""
    at = text.rfind("@")
    while at > 0:
        yield Path(text[:at]), text[at + 1 :]
        at = text.rfind("@", 0, at)
