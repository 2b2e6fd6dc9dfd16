"""Fingerprints: what files, models and YAMLs hold, in a form that can be compared."""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

from cot_reward.errors import UserError
from cot_reward.settings import read_yaml
from cot_reward.store import write_json

MISSING = "missing"
_BLOCK_BYTES = 2**20
# Of a file of weights so many blocks are read, evenly spaced: 15 GB would take half a minute, and
# training changes every block.
_WEIGHT_BLOCKS = 64
_WEIGHT_ENDINGS = (".safetensors", ".bin")
# What decides the answers of a model; training leaves further files beside it.
_MODEL_FILES = (
    "config.json", "generation_config.json", "adapter_config.json", "chat_template.jinja",
    "chat_template.json", "preprocessor_config.json", "processor_config.json", "tokenizer.json",
    "tokenizer_config.json",
)  # fmt: skip


class Fingerprints:
    """Fingerprints of files and folders. Hashes of large files are kept in `cache`, if it is given.

    A file is read again when its size or its time of change is another one.
    """

    def __init__(self, cache: Path | None = None) -> None:
        self._cache = cache
        self._known: dict[str, list[object]] = {}
        if cache and cache.exists():
            try:
                self._known = dict(json.loads(cache.read_text(encoding="utf-8")))
            except ValueError:
                self._known = {}  # half-written: only time is lost

    def of(self, path: Path) -> str:
        """The fingerprint of a YAML (its values), a model's folder, a folder of media, or a file.

        The pictures in a folder of media are not read: their names and sizes count. MISSING where
        there is nothing. Raises UserError for a file that cannot be read.
        """
        try:
            if path.is_dir():
                return self._of_model(path) if is_model(path) else _of_media(path)
            if not path.is_file():
                return MISSING
            return _of_yaml(path) if path.suffix == ".yaml" else self._of_file(path)
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror}") from None

    def _of_model(self, folder: Path) -> str:
        files = [folder / name for name in _MODEL_FILES]
        files += sorted(p for p in folder.iterdir() if p.name.endswith(_WEIGHT_ENDINGS))
        return _digest(f"{file.name} {self._of_file(file)}" for file in files if file.is_file())

    def _of_file(self, path: Path) -> str:
        stat = path.stat()
        seen = [stat.st_size, stat.st_mtime_ns]
        known = self._known.get(str(path))
        if known and known[:2] == seen:
            return str(known[2])
        blocks = _WEIGHT_BLOCKS if path.name.endswith(_WEIGHT_ENDINGS) else 0
        found = _hash(path, stat.st_size, blocks)
        self._known[str(path)] = [*seen, found]
        if self._cache and stat.st_size > _BLOCK_BYTES:
            write_json(self._cache, self._known)
        return found


def is_model(path: Path) -> bool:
    """Whether this is the folder of a model or of an adapter."""
    return any((path / name).is_file() for name in _MODEL_FILES)


def _of_media(folder: Path) -> str:
    found = []
    for parent, _, files in os.walk(folder):
        for name in files:
            file = Path(parent, name)
            found.append(f"{file.relative_to(folder)} {file.stat().st_size}")
    return _digest(sorted(found))


def _of_yaml(path: Path) -> str:
    # Another comment is no other setting.
    return _digest([json.dumps(read_yaml(path), sort_keys=True, default=str)])


def _hash(path: Path, size: int, blocks: int) -> str:
    """The hash of a file; of so many evenly spaced blocks and the size, if `blocks` is not 0."""
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        if blocks and size > blocks * _BLOCK_BYTES:
            for number in range(blocks):
                file.seek((size - _BLOCK_BYTES) * number // (blocks - 1))
                digest.update(file.read(_BLOCK_BYTES))
        else:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
    return digest.hexdigest()[:16]


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
