"""What a run asks: its comparisons and templates, what is done of them, and what is missing."""

import hashlib
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from cot_reward.client.wire import Request
from cot_reward.errors import UserError
from cot_reward.inference.inputs import read_comparisons
from cot_reward.inference.ledger import Ledger, Listed, Side
from cot_reward.inference.results import FILES
from cot_reward.inference.settings import InferenceSettings
from cot_reward.inference.until import Rule
from cot_reward.judge import judge
from cot_reward.media.paths import ImageRoots
from cot_reward.records import Comparison, Order, Verdict, token_fault
from cot_reward.rows.file_flags import DataFile, data_files, held_out_files
from cot_reward.rows.held_out import HeldOut
from cot_reward.rows.labels import parse_meanings
from cot_reward.store import journal_entries
from cot_reward.tasks import TASKS, prompts
from cot_reward.tasks.prompts import (
    check_media_count,
    check_template,
    read_templates,
    template_hash,
)

# Comparisons without a missing sample that are passed over before others get a turn.
COMPARISONS_PER_TURN = 256


def request_seed(seed: int, key: str, order: str) -> int:
    """A seed for the first sample of a comparison in one order, below 2**52.

    Exact as a JSON double anywhere, with room to add sample indices.
    """
    digest = hashlib.sha256(f"{seed}\n{key}\n{order}".encode()).hexdigest()
    return int(digest[:13], 16)


class Run:
    """One run: its listed comparisons, the units that are done, and the requests still needed.

    `templates` and `template_hashes` are by task, for the tasks of the listed comparisons.
    `counts` sums the tokens and retries of all journal entries; `passed_over` counts the samples
    that turned out not to be asked (see `until`). `held_out` has the comparisons of --exclude
    (None: the flag is not given), and `held_out_entries` counts the journal's responses to them, of
    starts that did not hold them out. Raises UserError for data, templates or tasks that cannot be
    used, and for a held-out row that cannot be read.
    """

    def __init__(self, settings: InferenceSettings, ledger: Ledger) -> None:
        self.settings, self.ledger = settings, ledger
        self.rule = Rule.of(settings)
        self.counts: Counter[str] = Counter()
        self.passed_over = 0
        # Failures before this byte of the journal are asked again.
        self._retry_before = 0
        templates = read_templates(settings.template, settings.form)
        files = data_files(settings.data, settings.image_root)
        roots = list(dict.fromkeys(file.image_root for file in files if file.image_root))
        self.roots = ImageRoots(settings.media_root, roots)
        self.held_out = _held_out(settings, files)
        self.held_out_entries = 0

        def check_placeholders(comparison: Comparison) -> None:
            shown = prompts.shown_media(comparison, "given")
            check_media_count(templates[comparison.task], len(shown))

        read_comparisons(
            ledger, [file.path for file in files], settings.media_root,
            [file.image_root or settings.media_root for file in files],
            settings.adapter, settings.task, settings.limit, check_placeholders, templates,
            parse_meanings(settings.labels), self.held_out, settings.share,
        )  # fmt: skip
        self.templates = {name: templates[name] for name in ledger.tasks()}
        for name, template in self.templates.items():
            try:
                check_template(template, TASKS[name])
            except ValueError as error:
                raise UserError(
                    f"--template {' '.join(settings.template)}: {error}; a file for this task "
                    f"alone is named by --template {name}=FILE"
                ) from None
        self.template_hashes = {
            name: template_hash(template) for name, template in self.templates.items()
        }

    def resume(
        self, journal: Path, run_hash: str, template_hashes: Collection[str], judging: bool
    ) -> None:
        """Take in all entries of a journal. `judging` False: a run that derives no files.

        Raises UserError for responses of another run, or to prompts of other templates.
        """
        for offset, entry in journal_entries(journal):
            if entry.get("run") != run_hash or entry.get("template") not in template_hashes:
                raise UserError(f"{journal}: holds responses of other settings; use another --out")
            # Whether a sample is needed depends on the texts before it.
            needed = judging or self.rule.sides
            self._enter(entry, offset, self._judge(entry) if needed else None)
            self._retry_before = offset + 1 if self.settings.retry_failed else 0
            if self.held_out and "text" in entry and self.held_out.files_with([entry["key"]]):
                self.held_out_entries += 1

    def enter(self, entry: dict[str, Any], offset: int) -> Verdict | None:
        """Take in a journal entry that is on disk and begins at this byte; what the judge found.

        None for a failure, and for a response that this start does not ask for.
        """
        verdict = self._judge(entry)
        self._enter(entry, offset, verdict)
        return verdict

    def _enter(self, entry: dict[str, Any], offset: int, verdict: Verdict | None) -> None:
        self.ledger.enter(entry, offset, verdict, self._side(entry, verdict))
        for name in ("prompt_tokens", "completion_tokens", "retries"):
            self.counts[name] += entry.get(name, 0)

    def _judge(self, entry: dict[str, Any]) -> Verdict | None:
        """The one place where a response is judged; the ledger keeps the finding."""
        if "reason" in entry or entry["sample"] >= self.settings.num_samples:
            return None
        presentation = self.ledger.presentation(entry["key"], entry["ascending"])
        if presentation is None or presentation.order not in self.settings.asked_orders:
            return None
        task = TASKS[presentation.task]
        reason, form = entry["finish_reason"], self.settings.form
        return judge(entry["text"], task, presentation.label, reason, form)

    def _side(self, entry: dict[str, Any], verdict: Verdict | None) -> Side:
        if verdict is None or not self.rule.sides or token_fault(entry["text"]):
            return ""
        return self.rule.side(verdict)

    def progress(self) -> tuple[int, int]:
        """Units with a response, and units that failed."""
        return self.ledger.progress(self.settings.asked_orders, self.settings.num_samples)

    @property
    def bad_units(self) -> int:
        """Units of bad records: they are never asked for."""
        return self.ledger.bad_count * self.settings.units_per_record

    @property
    def excluded_units(self) -> int:
        """Units of held-out comparisons in the data: they are never asked for."""
        held_out = self.held_out.left_out if self.held_out else 0
        return held_out * self.settings.units_per_record

    @property
    def expected_units(self) -> int:
        """Units of the listed comparisons and of the bad records."""
        return len(self.ledger) * self.settings.units_per_record + self.bad_units

    def most_units(self, judged: int, failed: int) -> int:
        """How many units may still be asked, once `requests` has been gone through."""
        stays = judged + (0 if self.settings.retry_failed else failed) + self.passed_over
        return self.expected_units - self.bad_units - stays

    def requests(self) -> Iterator[Request | None]:
        """The requests of `rounds`, one by one."""
        for requests in self.rounds():
            yield from [None] if requests is None else requests

    def rounds(self) -> Iterator[list[Request] | None]:
        """Of each comparison and order the requests that it needs now, in the order of the input.

        None now and then while nothing is missing, so that other tasks get a turn.
        """
        for position, listed in enumerate(self.ledger, 1):
            if position % COMPARISONS_PER_TURN == 0:
                yield None
            for order in self.settings.asked_orders:
                if requests := self.next_round(listed, order):
                    yield requests

    def next_round(self, listed: Listed, order: Order) -> list[Request]:
        """The requests that a comparison in one order needs now, by what the ledger has of it."""
        comparison, seed = listed.comparison, self.settings.seed
        units = self.ledger.units(listed, order, self.rule.samples)
        state = self.rule.state(units, self._retry_before)
        self.passed_over += state.passed_over
        # Consecutive samples share one request: the server gives sample i the seed + i.
        return [
            Request(
                comparison, listed.key, order, first, count,
                seed=request_seed(seed, listed.key, order) + first,
                prompt=prompts.render(comparison, order, self.templates[comparison.task]),
                media=prompts.shown_media(comparison, order),
            )
            for first, count in _consecutive(state.missing)
        ]  # fmt: skip


def _held_out(settings: InferenceSettings, files: Sequence[DataFile]) -> HeldOut | None:
    """The comparisons of --exclude; None without it. Raises UserError."""
    if not settings.exclude:
        return None
    roots = {file.image_root for file in files}
    default = (roots.pop() if len(roots) == 1 else None) or settings.media_root
    found = held_out_files(
        settings.exclude, settings.exclude_image_root, default, settings.media_root
    )
    outputs = [settings.out / f"{name}.jsonl" for name in FILES]
    for path, _ in found:
        if any(path.resolve() == output.resolve() for output in outputs):
            raise UserError(
                f"--exclude {path}: a run into --out {settings.out} replaces this file; move it to "
                "another folder, or choose another --out"
            )
    return HeldOut(found, settings.media_root)


def _consecutive(numbers: list[int]) -> Iterator[tuple[int, int]]:
    """(first, count) of each series of consecutive numbers."""
    start = 0
    for end in range(1, len(numbers) + 1):
        if end == len(numbers) or numbers[end] != numbers[end - 1] + 1:
            yield numbers[start], end - start
            start = end
