"""Reference log-probs on disk: computed once for a model, its processor, a row and the settings.

    CACHE/KEY/about.json     what the key is made of
    CACHE/KEY/*.jsonl        {"row": digest, "chosen": log-prob, "rejected": log-prob}

Every process that computes writes a file of its own and appends a batch at a time, so that a crash
loses the batch in work, and runs side by side do not meet. Rows are found by the digest of what
the model is shown: of a changed data file only the changed rows are computed anew.
"""

import json
import math
import uuid
from collections.abc import Iterable, Mapping
from contextlib import suppress
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any, cast

from cot_reward.errors import UserError
from cot_reward.rows.reading import read_rows
from cot_reward.store import Journal, write_text_file

# What a model's log-probs depend on, beside its weights; of the processor, too.
_FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
)
_WEIGHTS = ("*.safetensors", "*.bin")

Logps = tuple[float, float]


def model_digest(folder: Path) -> str:
    """The sha256 of a model folder's weights, configuration, tokenizer and processor."""
    files = [folder / name for name in _FILES]
    # safetensors come first, and where there are any, no other weights are loaded.
    weights = next((found for kind in _WEIGHTS if (found := sorted(folder.glob(kind)))), [])
    whole = sha256()
    for path in [*files, *weights]:
        if path.is_file():
            with path.open("rb") as file:
                whole.update(f"{path.name}:{file_digest(file, 'sha256').hexdigest()}\n".encode())
    return whole.hexdigest()


def _is_finite(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value)


class Cache:
    """The reference log-probs of one model under one set of settings.

    `about` is what they depend on, beside the rows; its digest is the key.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        text = json.dumps(about, indent=2, sort_keys=True) + "\n"
        self.folder = folder / sha256(text.encode()).hexdigest()[:32]
        self._about = text
        self._journal: Journal | None = None

    def read(self) -> dict[str, Logps]:
        """What is there: digest of a row -> log-probs of its chosen and its rejected text."""
        found: dict[str, Logps] = {}
        for path in sorted(self.folder.glob("*.jsonl")):
            # What a crash leaves, an empty file or half a line, is computed again.
            with suppress(UserError):
                for _, entry in read_rows(path):
                    if isinstance(entry, ValueError):
                        continue
                    row, logps = entry.get("row"), (entry.get("chosen"), entry.get("rejected"))
                    if isinstance(row, str) and all(map(_is_finite, logps)):
                        found[row] = cast(Logps, logps)
        return found

    def add(self, rows: Iterable[str], logps: Iterable[Logps]) -> None:
        """Append, on disk when this returns. Raises UserError when that cannot be done."""
        try:
            if self._journal is None:
                self.folder.mkdir(parents=True, exist_ok=True)
                write_text_file(self.folder / "about.json", self._about)
                self._journal = Journal(self.folder / f"{uuid.uuid4().hex}.jsonl")
            self._journal.append(
                {"row": row, "chosen": chosen, "rejected": rejected}
                for row, (chosen, rejected) in zip(rows, logps, strict=True)
            )
        except (OSError, UserError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise UserError(
                f"{self.folder}: reference log-probs cannot be written ({why}); make room, or name "
                "another folder with --reference_cache_dir"
            ) from None

    def close(self) -> None:
        if self._journal is not None:
            self._journal.close()
            self._journal = None
