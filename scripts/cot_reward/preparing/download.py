"""Data sets from the Hugging Face hub: what they are first, then their files, then their archives.

huggingface_hub fetches: it resumes, checks sizes, and takes mirrors by HF_ENDPOINT. Contents are
compared with the hub's hashes here.
"""

import hashlib
import io
import re
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import IO

from tqdm import tqdm

from cot_reward.errors import UserError, nearest
from cot_reward.preparing.archives import opened_tar
from cot_reward.preparing.sets import SETS
from cot_reward.preparing.settings import DownloadSettings
from cot_reward.preparing.shown_media import in_order
from cot_reward.store import read_json, write_json

# What was unpacked, by archive; beside the files.
_UNPACKED = ".unpacked.json"
# Sizes and times of files whose content was compared with the hub's hash.
_CHECKED = ".checked.json"
_ARCHIVE = re.compile(
    r"(.*\.(?:tar\.(?:gz|bz2|xz)|tar|tgz|zip))(?:[._-](?:part)?[-_]?([0-9]+|[a-z]{2}))?"
)
# Unpacked files take more room than their archives.
_ROOM = 2.2


def download(settings: DownloadSettings) -> int:
    """Show a set's size and licence and, with --accept, fetch and unpack it; returns the exit code.

    A second start fetches and unpacks only what is missing. Raises UserError.
    """
    # Loading it takes a third of a second.
    from httpx2 import HTTPError  # what huggingface_hub is made of
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError

    repository = _repository(settings.name)
    folder = settings.out or Path("dataset") / repository.rpartition("/")[2]
    try:
        info = HfApi().dataset_info(
            repository, revision=settings.revision, files_metadata=True, timeout=60
        )
        sizes = {
            file.rfilename: file.size or 0
            for file in info.siblings or []
            if not settings.files or any(fnmatch(file.rfilename, p) for p in settings.files)
        }
        if not sizes:
            raise UserError(f"{repository}: no file is called {' or '.join(settings.files)}")
        total = sum(sizes.values())
        licence = getattr(info.card_data, "license", None) or "not said; read its page"
        print(
            f"{repository} at {info.sha}: {len(sizes):,} files, {_bytes(total)}; licence: {licence}"
        )
        if not settings.accept:
            print("nothing was fetched; --accept fetches it into", folder)
            return 0
        folder.mkdir(parents=True, exist_ok=True)
        _check_room(folder, sizes)
        snapshot_download(
            repository, repo_type="dataset", revision=info.sha, local_dir=folder,
            allow_patterns=list(sizes), max_workers=settings.workers,
        )  # fmt: skip
    except RepositoryNotFoundError:
        raise UserError(
            f"{repository}: no such data set, or one that needs a login (hf auth login)"
        ) from None
    except (HfHubHTTPError, HFValidationError, HTTPError, OSError) as error:
        why = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"{repository}: {why}; the same command goes on where it stopped") from None
    hashes = {file.rfilename: file.lfs.sha256 for file in info.siblings or [] if file.lfs}
    _check_contents(folder, sizes, hashes)
    unpack(folder)
    print(f"{folder}: complete")
    return 0


def _check_contents(folder: Path, sizes: dict[str, int], hashes: dict[str, str]) -> None:
    """Compare the files with the sizes and hashes that the hub names, each once.

    huggingface_hub itself compares sizes only. A file with another content is removed, so that the
    next start fetches it. Raises UserError.
    """
    record = folder / _CHECKED
    done: dict[str, list[int]] = read_json(record) if record.exists() else {}
    for name, size in sizes.items():
        file = folder / name
        stat = file.stat() if file.is_file() else None
        if stat and done.get(name) == [stat.st_size, stat.st_mtime_ns]:
            continue
        wrong = stat is None or (size and stat.st_size != size)
        if stat and not wrong and name in hashes:
            with file.open("rb") as stream:
                wrong = hashlib.file_digest(stream, "sha256").hexdigest() != hashes[name]
        if wrong or stat is None:
            file.unlink(missing_ok=True)
            raise UserError(
                f"{file}: not the content that the hub names, and removed; the same command "
                "fetches it again"
            )
        done[name] = [stat.st_size, stat.st_mtime_ns]
    write_json(record, done)


def unpack(folder: Path) -> None:
    """Unpack the archives below a folder, each beside itself and once; nothing leaves the folder.

    Parts of one archive (images.tar.gz.00, images.tar.gz.01) are read one after the other. Raises
    UserError for an archive that cannot be unpacked.
    """
    record = folder / _UNPACKED
    done: dict[str, int] = read_json(record) if record.exists() else {}
    # An archive may hold archives.
    while left := {
        name: parts
        for name, parts in sorted(_archives(folder).items())
        if done.get(name) != sum(part.stat().st_size for part in parts)
    }:
        for name, parts in left.items():
            size = sum(part.stat().st_size for part in parts)
            print(f"unpacking {name} ({_bytes(size)})", file=sys.stderr)
            target = (folder / name).parent
            try:
                if name.endswith(".zip"):
                    _unzip(parts, target)
                else:
                    with _Joined(parts) as stream, opened_tar(stream) as archive:
                        # The filter refuses links and names that lead out, and devices.
                        archive.extractall(target, filter="data")
            except (OSError, EOFError, tarfile.TarError, zipfile.BadZipFile) as error:
                raise UserError(f"{folder / name}: cannot be unpacked: {error}") from None
            done[name] = size
            write_json(record, done)


def _archives(folder: Path) -> dict[str, list[Path]]:
    """The archives below a folder by name, with their parts in order."""
    found: dict[str, dict[str, Path]] = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        match = _ARCHIVE.fullmatch(name)
        if match and path.is_file() and not name.startswith("."):
            found.setdefault(match[1], {})[match[2] or ""] = path
    archives = {}
    for name, parts in found.items():
        # The parts of `split` begin with aa; images.tar.md is no part.
        numbers = sorted(part for part in parts if not part.isalpha())
        letters = sorted(part for part in parts if part.isalpha()) if "aa" in parts else []
        if order := [*sorted(numbers, key=in_order), *letters]:
            archives[name] = [parts[part] for part in order]
    return archives


def _unzip(parts: Sequence[Path], target: Path) -> None:
    if len(parts) > 1:
        raise OSError("a zip file in several parts is not read; join it by hand")
    with zipfile.ZipFile(parts[0]) as archive:
        room = shutil.disk_usage(target).free
        if (needed := sum(entry.file_size for entry in archive.infolist())) > room:
            raise OSError(f"its files take {_bytes(needed)}, and {_bytes(room)} are free")
        root = target.resolve()
        for entry in archive.infolist():
            if not (root / entry.filename).resolve().is_relative_to(root):
                raise OSError(f"{entry.filename!r:.80} leads out of the folder")
        archive.extractall(target)


class _Joined(io.RawIOBase):
    """Files as one stream."""

    def __init__(self, parts: Sequence[Path]) -> None:
        self._rest = iter(parts)
        self._file: IO[bytes] | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while True:
            if self._file is None:
                part = next(self._rest, None)
                if part is None:
                    return 0
                self._file = part.open("rb")
            data = self._file.read(len(buffer))
            if data:
                buffer[: len(data)] = data
                return len(data)
            self._file.close()
            self._file = None


def _repository(name: str) -> str:
    if name in SETS:
        return SETS[name].repository
    if "/" not in name:
        raise UserError(
            f"no set is called '{name}'.{nearest(name, SETS)} Name one of `prepare_data.py list`, "
            "or OWNER/NAME on the hub"
        )
    return name


def _check_room(folder: Path, sizes: dict[str, int]) -> None:
    """Raise UserError when the files that are missing do not fit on the disk."""
    missing = [name for name, size in sizes.items() if not _is_there(folder / name, size)]
    archives = sum(sizes[name] for name in missing if _ARCHIVE.fullmatch(name))
    needed = sum(sizes[name] for name in missing) + int(archives * (_ROOM - 1))
    room = shutil.disk_usage(folder).free
    if needed > room:
        raise UserError(
            f"{folder}: the files take {_bytes(needed)} with what is unpacked, and {_bytes(room)} "
            "are free; fetch a part with --files PATTERN, or choose another --out"
        )


def _is_there(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _bytes(count: int) -> str:
    return str(tqdm.format_sizeof(count, "B"))
