"""One run of stage 2: what is still to be asked, its journal's lines, and what must not change."""

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from cot_reward.client.wire import Ask, Outcome
from cot_reward.errors import UserError
from cot_reward.inference.inputs import read_pool
from cot_reward.inference.ledger import Ledger, ascending
from cot_reward.inference.settings import InferenceSettings
from cot_reward.store import journal_entries
from cot_reward.tasks import TASKS, prompts
from cot_reward.tasks.prompts import check_template, template_hash


def request_seed(seed: int, key: str, order: str) -> int:
    """A seed for the first sample of a comparison in one order, below 2**52.

    Exact as a JSON double anywhere, with room to add sample indices.
    """
    digest = hashlib.sha256(f"{seed}\n{key}\n{order}".encode()).hexdigest()
    return int(digest[:13], 16)


class Stage:
    """One run: what is asked, and the journal and ledger of what came."""

    def __init__(self, settings: InferenceSettings, ledger: Ledger) -> None:
        self.settings, self.ledger = settings, ledger
        self.counts: Counter[str] = Counter()
        templates = self._templates()
        read_pool(
            ledger, settings.data, settings.media_root, settings.image_root,
            settings.source, settings.task, settings.limit,
            # A template with placeholders of its own fits so many media.
            lambda comparison: prompts.render(comparison, "given", templates[comparison.task]),
        )  # fmt: skip
        self.templates = {name: templates[name] for name in ledger.tasks()}
        for name, template in self.templates.items():
            if TASKS[name].medium != "image":
                raise UserError(f"comparisons of task {name}: videos cannot be sent yet")
            try:
                check_template(template, TASKS[name])
            except ValueError as error:
                raise UserError(f"--template {settings.template}: {error}") from None
        self.hashes = {name: template_hash(text) for name, text in self.templates.items()}

    def _templates(self) -> dict[str, str]:
        """task -> template."""
        path = self.settings.template
        if path is None:
            return {name: task.template for name, task in TASKS.items()}
        try:
            return dict.fromkeys(TASKS, path.read_text(encoding="utf-8").rstrip("\n"))
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--template {path}: cannot be read: {error}") from None

    def resume(self, journal: Path, run: str, templates: Collection[str]) -> None:
        """Take in what the journal holds.

        Raises UserError for responses of another run, or to prompts of other templates.
        """
        for offset, entry in journal_entries(journal):
            if entry.get("run") != run or entry.get("template") not in templates:
                raise UserError(f"{journal}: holds responses of other settings; use another --out")
            self.enter(entry, offset)

    def enter(self, entry: dict[str, Any], offset: int) -> None:
        """Count a journal entry that is on disk."""
        self.ledger.enter(entry, offset)
        for name in ("prompt_tokens", "completion_tokens", "retries"):
            self.counts[name] += entry.get(name, 0)

    def progress(self) -> tuple[int, int]:
        """Units with a response, and units that failed."""
        return self.ledger.progress(self.settings.asked_orders, self.settings.num_samples)

    @property
    def per_record(self) -> int:
        return len(self.settings.asked_orders) * self.settings.num_samples

    @property
    def bad_units(self) -> int:
        return self.ledger.bad_count * self.per_record

    @property
    def expected(self) -> int:
        return len(self.ledger) * self.per_record + self.bad_units

    def asks(self) -> Iterator[Ask | None]:
        """Every request that is still needed; the requests of a comparison follow each other.

        None now and then while there is nothing to ask, so that others get their turn.
        """
        settings = self.settings
        for position, listed in enumerate(self.ledger):
            if position % 256 == 255:
                yield None
            comparison = listed.comparison
            template = self.templates[comparison.task]
            for order in settings.asked_orders:
                known = self.ledger.known(listed, order, settings.num_samples)
                done = {n for n, (_, failed) in known.items() if not failed}
                settled = done if settings.retry_failed else known.keys()
                missing = [n for n in range(settings.num_samples) if n not in settled]
                # Consecutive samples share one request: the server gives sample i the seed + i.
                for first, count in _consecutive(missing):
                    yield Ask(
                        comparison, listed.key, order, first, count,
                        seed=request_seed(settings.seed, listed.key, order) + first,
                        prompt=prompts.render(comparison, order, template),
                        placeholder=TASKS[comparison.task].placeholder,
                        media=prompts.shown(comparison, order),
                    )  # fmt: skip


def _consecutive(numbers: list[int]) -> Iterator[tuple[int, int]]:
    """(first, count) of each run of consecutive numbers."""
    start = 0
    for end in range(1, len(numbers) + 1):
        if end == len(numbers) or numbers[end] != numbers[end - 1] + 1:
            yield numbers[start], end - start
            start = end


def journal_lines(outcome: Outcome, run: str, templates: Mapping[str, str]) -> list[dict[str, Any]]:
    """The journal's lines of an outcome: one for each response, or one for the failure."""
    ask = outcome.ask
    unit = {
        "key": ask.key, "order": ask.order, "ascending": ascending(ask.comparison, ask.order),
        "run": run, "template": templates[ask.comparison.task],
    }  # fmt: skip
    if outcome.reason:
        failure = {"first": ask.first, "count": ask.count, "reason": outcome.reason,
                   "detail": outcome.detail, "retries": outcome.retries}  # fmt: skip
        return [unit | failure]
    entries = [
        unit | {"sample": response.sample, "text": response.text, "seed": ask.seed,
                "finish_reason": response.finish_reason, "model": response.model}
        for response in outcome.responses
    ]  # fmt: skip
    # The server counts tokens by request; the first sample carries them.
    entries[0] |= {
        "prompt_tokens": outcome.prompt_tokens,
        "completion_tokens": outcome.completion_tokens,
        "retries": outcome.retries,
    }
    return entries


# Changing one of these would mix two kinds of responses in one folder.
_FIXED = ("model", "temperature", "top_p", "max_tokens", "seed", "image_max_pixels")


def run_key(resolved: Mapping[str, Any]) -> str:
    """16 hexadecimal digits that stand for model and sampling settings."""
    fixed = json.dumps([resolved[name] for name in _FIXED])
    return hashlib.sha256(fixed.encode()).hexdigest()[:16]


def run_there(path: Path) -> dict[str, Any]:
    """The settings of the run that is there; empty when there is none. Raises UserError."""
    if not path.exists():
        return {}
    try:
        before: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return before | {"templates": dict(before["templates"])}
    except (OSError, ValueError, LookupError, TypeError):
        raise UserError(f"{path}: not a run's settings; restore or remove it") from None


def same_run(path: Path, before: dict[str, Any], current: dict[str, Any]) -> dict[str, Any]:
    """The run's settings, with the templates that the run there has for other tasks.

    Raises UserError when the run that is there (`before`, empty: none) has other settings.
    """
    if before:
        templates = before["templates"]
        differing = [
            f"{name}: {before.get(name)!r} there, {current[name]!r} now"
            for name in _FIXED
            if before.get(name) != current[name]
        ]
        differing += [
            f"template of {task}: {templates[task]} there, {hashed} now"
            for task, hashed in current["templates"].items()
            if templates.get(task, hashed) != hashed
        ]
        if differing:
            raise UserError(
                f"{path.parent} holds a run with other settings; use another --out, or the same "
                "settings:\n  " + "\n  ".join(differing)
            )
        # Data of another task may have been added.
        return current | {"templates": templates | current["templates"]}
    return current
