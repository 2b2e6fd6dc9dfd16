"""Reference log-probs on disk: computed once for a model, its processor, a row and the settings.

    CACHE/KEY/about.json     what the key is the digest of
    CACHE/KEY/*.jsonl        {"row": digest, "chosen": log-prob, "rejected": log-prob,
                              "chosen_answer": ..., "rejected_answer": ...,
                              "chosen_compared": ..., "rejected_compared": ...}

Every process writes a file of its own, so concurrent runs do not collide. It appends batch by
batch, so a crash loses one batch. A row is found by the digest of what the model is shown: when a
data file changes, only its changed rows are computed again.
"""

import json
import math
import uuid
from collections.abc import Iterable, Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from cot_reward.errors import UserError
from cot_reward.rows.reading import read_rows
from cot_reward.store import Journal, write_text_file


class Logps(NamedTuple):
    """The log-probs of a pair's texts, of their answer blocks (0 without), of what is compared."""

    chosen: float
    rejected: float
    chosen_answer: float
    rejected_answer: float
    chosen_compared: float
    rejected_compared: float


def _is_finite(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value)


class ReferenceCache:
    """The reference log-probs of one model under one set of settings.

    `dependencies` are all that the log-probs depend on, besides the rows; their digest is the key.
    """

    def __init__(self, folder: Path, dependencies: Mapping[str, Any]) -> None:
        self._dependencies = json.dumps(dependencies, indent=2, sort_keys=True) + "\n"
        self.folder = folder / sha256(self._dependencies.encode()).hexdigest()[:32]
        self._journal: Journal | None = None

    def read(self) -> dict[str, Logps]:
        """All entries: digest of a row -> its log-probs."""
        entries: dict[str, Logps] = {}
        for path in sorted(self.folder.glob("*.jsonl")):
            # A crash leaves an empty file or half a line; its rows are computed again.
            with suppress(UserError):
                for _, entry in read_rows(path):
                    if isinstance(entry, ValueError):
                        continue
                    row = entry.get("row")
                    logps: list[Any] = [entry.get(name) for name in Logps._fields]
                    if isinstance(row, str) and all(map(_is_finite, logps)):
                        entries[row] = Logps(*logps)
        return entries

    def add(self, rows: Iterable[str], logps: Iterable[Logps]) -> None:
        """Append entries; they are on disk on return. Raises UserError when writing fails."""
        try:
            if self._journal is None:
                self.folder.mkdir(parents=True, exist_ok=True)
                write_text_file(self.folder / "about.json", self._dependencies)
                self._journal = Journal(self.folder / f"{uuid.uuid4().hex}.jsonl")
            self._journal.append(
                {"row": row, **of_row._asdict()} for row, of_row in zip(rows, logps, strict=True)
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
