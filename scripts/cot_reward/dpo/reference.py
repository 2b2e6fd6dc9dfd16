"""Reference log-probs on disk: computed once for a model, its processor and a text.

    CACHE/KEY/about.json     what the key is the digest of
    CACHE/KEY/*.jsonl        {"text": digest, "logps": log-probs of its tokens, float32 in base64}

Every process writes a file of its own, so concurrent runs do not collide. It appends batch by
batch, so a crash loses one batch. A text is found by the digest of what the model is shown, prompt
and images among it: a text of several pairs is computed once, and when a data file changes, only
its new texts are. Since each token has its log-prob, what a run makes of them does not matter.
"""

import binascii
import json
import uuid
from base64 import b64decode, b64encode
from collections.abc import Iterable, Mapping, Set
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from cot_reward.errors import UserError
from cot_reward.rows.reading import read_rows
from cot_reward.store import Journal, write_text_file

# The log-probs of a text's tokens, (tokens,), float32.
Logps = np.ndarray
_LITTLE_ENDIAN = np.dtype("<f4")


class ReferenceCache:
    """The reference log-probs of one model under one set of settings.

    `dependencies` are all that the log-probs depend on, besides prompts, images and texts; their
    digest is the key.
    """

    def __init__(self, folder: Path, dependencies: Mapping[str, Any]) -> None:
        self._dependencies = json.dumps(dependencies, indent=2, sort_keys=True) + "\n"
        self.folder = folder / sha256(self._dependencies.encode()).hexdigest()[:32]
        self._journal: Journal | None = None

    def read(self, wanted: Set[str]) -> dict[str, Logps]:
        """The entries of those texts: digest -> log-probs."""
        entries: dict[str, Logps] = {}
        for path in sorted(self.folder.glob("*.jsonl")):
            # A crash leaves an empty file or half a line; its texts are computed again.
            with suppress(UserError):
                for _, entry in read_rows(path):
                    if isinstance(entry, ValueError):
                        continue
                    digest, logps = entry.get("text"), _decoded(entry.get("logps"))
                    if isinstance(digest, str) and digest in wanted and logps is not None:
                        entries[digest] = logps
        return entries

    def add(self, entries: Iterable[tuple[str, Logps]]) -> None:
        """Append entries; they are on disk on return. Raises UserError when writing fails."""
        try:
            if self._journal is None:
                self.folder.mkdir(parents=True, exist_ok=True)
                write_text_file(self.folder / "about.json", self._dependencies)
                self._journal = Journal(self.folder / f"{uuid.uuid4().hex}.jsonl")
            self._journal.append(
                {"text": digest, "logps": _encoded(logps)} for digest, logps in entries
            )
        except (OSError, UserError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise UserError(
                f"{self.folder}: reference log-probs cannot be written ({why}); free disk space, "
                "or name another folder with --reference_cache_dir"
            ) from None

    def close(self) -> None:
        if self._journal is not None:
            self._journal.close()
            self._journal = None


def _encoded(logps: Logps) -> str:
    return b64encode(logps.astype(_LITTLE_ENDIAN).tobytes()).decode()


def _decoded(value: Any) -> Logps | None:
    """The log-probs of an entry; None for what `add` would not have written."""
    if not isinstance(value, str):
        return None
    try:
        logps = np.frombuffer(b64decode(value, validate=True), _LITTLE_ENDIAN)
    except (binascii.Error, ValueError):
        return None
    return logps.astype(np.float32) if len(logps) and np.isfinite(logps).all() else None
