"""The folder of a scoring: its journal, which a kill leaves whole, and its settings."""

import asyncio
import hashlib
import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cot_reward.errors import UserError
from cot_reward.inference.ledger import is_ascending
from cot_reward.inference.served_model import check_same_model, merged
from cot_reward.records import Comparison
from cot_reward.reward.results import Failure, Judgement
from cot_reward.reward.settings import RewardSettings
from cot_reward.store import Journal, entry_at, journal_entries, read_json

# With another value of one of these a folder would hold judgements that cannot be compared.
FIXED_SETTINGS = (
    "model", "task", "form", "template_hash", "votes", "temperature", "orders", "max_tokens",
    "seed", "sampling_defaults", "chat_template_kwargs", "image_max_pixels",
)  # fmt: skip
# Failures that say nothing of their comparison: it is asked again.
PASSING = ("server_gone", "stopped")


def fixed_settings(settings: RewardSettings, model: str, template_hash: str) -> dict[str, Any]:
    """What must stay as it is between two starts in a folder."""
    found = {name: getattr(settings, name, None) for name in FIXED_SETTINGS}
    return found | {
        "model": model, "template_hash": template_hash, "temperature": settings.temperature_used,
    }  # fmt: skip


def check_folder(
    out: Path, fixed: Mapping[str, Any], served: Mapping[str, Any], any_weights: bool
) -> Mapping[str, Any]:
    """What tells the folder's weights, of which `served` may tell less than an earlier start.

    Raises UserError when the folder holds judgements of another model, prompt or settings.
    """
    path = out / "settings.json"
    if not path.exists():
        return served
    previous = read_json(path)
    if not isinstance(previous.get("fixed"), dict):
        raise UserError(f"{path}: not the settings of a scoring; restore or remove it")
    differences = [
        f"{name}: {previous['fixed'].get(name)!r} there, {value!r} now"
        for name, value in fixed.items()
        if previous["fixed"].get(name) != value
    ]
    if differences:
        raise UserError(
            f"{out} holds a scoring with other settings; use another --out, or the same "
            "settings:\n  " + "\n  ".join(differences)
        )
    if any_weights:
        return served
    check_same_model(out, previous.get("served_model") or {}, served)
    return merged(previous.get("served_model") or {}, served)


def run_hash(fixed: Mapping[str, Any]) -> str:
    """16 hexadecimal digits that stand for the model and its settings."""
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(eq=False)
class _Line:
    entry: dict[str, Any]
    offset: int = -1
    error: BaseException | None = None


class ScoreJournal:
    """What was answered, by the contents of what was compared: a `Memory` for a reward model.

    Lines: `comparison` (its key, and which candidate came first) with `result`; `row` (what a
    prompt's ranking is of) with `ranking`. Every line has `run`.

    Once `stopping` is set, what is not known yet is a failure ("stopped").
    """

    def __init__(self, path: Path, run: str, retry_failed: bool) -> None:
        """Raises UserError for a journal of other settings, or one that is open elsewhere."""
        self.stopping = False
        self._run, self._retry_failed = run, retry_failed
        self._journal = Journal(path)
        # Of each comparison and row the byte where its last line begins.
        self._comparisons: dict[str, int] = {}
        self._rows: dict[str, int] = {}
        self._queue: list[_Line] = []
        self._queueing, self._writing = threading.Lock(), threading.Lock()
        try:
            for offset, entry in journal_entries(path):
                if entry.get("run") != run:
                    raise UserError(
                        f"{path}: holds judgements of other settings; use another --out"
                    )
                name = "row" if "row" in entry else "comparison"
                if not isinstance(entry.get(name), str):
                    raise UserError(
                        f"{path}: a line has neither a comparison nor a row; restore the file, or "
                        "remove the line"
                    )
                (self._rows if name == "row" else self._comparisons)[entry[name]] = offset
        except BaseException:
            self._journal.close()
            raise
        # `recall` and `known_row` are called from two threads.
        self._reading, self._seeking = path.open("rb"), threading.Lock()

    def _entry_at(self, offset: int) -> dict[str, Any]:
        with self._seeking:
            return entry_at(self._reading, offset)

    @staticmethod
    def _key(comparison: Comparison) -> str:
        return f"{comparison.key}:{int(is_ascending(comparison, 'given'))}"

    def recall(self, comparison: Comparison) -> Judgement | Failure | None:
        offset = self._comparisons.get(self._key(comparison))
        if offset is not None:
            result = self._entry_at(offset)["result"]
            if "reason" not in result:
                return Judgement.from_dict(result)
            if not self._retry_failed:
                return Failure.from_dict(result)
        return Failure("stopped", "the run was stopped") if self.stopping else None

    async def keep(self, comparison: Comparison, found: Judgement | Failure) -> None:
        if isinstance(found, Failure) and found.reason in PASSING:
            # Nothing more is asked of servers that are gone.
            self.stopping = True
            return
        key = self._key(comparison)
        entry = {"comparison": key, "result": found.as_dict()}
        self._comparisons[key] = await asyncio.to_thread(self._append, entry)

    def known_row(self, row: str) -> dict[str, Any] | None:
        """The ranking of a row that was finished before; None for any other row."""
        offset = self._rows.get(row)
        if offset is None:
            return None
        found: dict[str, Any] = self._entry_at(offset)["ranking"]
        return None if self._retry_failed and found["counts"]["failed"] else found

    async def finish_row(self, row: str, ranking: dict[str, Any]) -> None:
        entry = {"row": row, "ranking": ranking}
        self._rows[row] = await asyncio.to_thread(self._append, entry)

    def _append(self, entry: dict[str, Any]) -> int:
        """Write a line; the byte where it begins. It blocks. Raises OSError.

        Lines that come while others are written go to the disk together.
        """
        line = _Line({**entry, "run": self._run})
        with self._queueing:
            self._queue.append(line)
        with self._writing:
            if line.offset < 0 and line.error is None:
                with self._queueing:
                    lines, self._queue = self._queue, []
                try:
                    offsets = self._journal.append([one.entry for one in lines])
                except BaseException as error:
                    for one in lines:
                        one.error = error
                else:
                    for one, offset in zip(lines, offsets, strict=True):
                        one.offset = offset
        if line.error is not None:
            raise line.error
        return line.offset

    def close(self) -> None:
        self._reading.close()
        self._journal.close()

    def __enter__(self) -> "ScoreJournal":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
