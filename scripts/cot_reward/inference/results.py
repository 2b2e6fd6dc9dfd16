"""The output files of inference, derived from ledger and journal: one row per judged response."""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from cot_reward.finish_reasons import ending
from cot_reward.inference.ledger import Ledger, Listed, Unit
from cot_reward.judge import destination
from cot_reward.records import Order, Verdict, conversation, token_fault
from cot_reward.stats import Tally, share
from cot_reward.store import atomic_file, dump, entry_at, write_jsonl
from cot_reward.tasks import TASKS
from cot_reward.tasks.prompts import render, shown_media, template_hash

JUDGED_FILES = ("correct", "incorrect", "unusable")
FILES = (*JUDGED_FILES, "failed")
# Of a text without an answer, so much of its end is told of.
_END_CHARACTERS = 60
# So many different ends are kept.
_MOST_ENDS = 10_000


@dataclass
class Results:
    """What the files hold: rows by file, failed units, the same by reason, and the metrics.

    unparsed_ends: the last words of texts without an answer; in brackets the finish reason, where
        its meaning is not known
    restored: how many texts were put back together, by how (see `records.Response`)
    """

    rows: Counter[str] = field(default_factory=Counter)
    failed_units: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    metrics: dict[str, Any] = field(default_factory=dict)
    unparsed_ends: Counter[str] = field(default_factory=Counter)
    restored: Counter[str] = field(default_factory=Counter)

    def add_end(self, end: str) -> None:
        if end in self.unparsed_ends or len(self.unparsed_ends) < _MOST_ENDS:
            self.unparsed_ends[end] += 1

    @property
    def judged(self) -> int:
        return sum(self.rows[name] for name in JUDGED_FILES)


def judged_rows(
    listed: Listed, order: Order, units: list[Unit], template: str, journal: IO[bytes]
) -> Iterator[tuple[dict[str, Any], Verdict, str]]:
    """Of each judged response of a comparison in one order: row, verdict, how it was restored."""
    judged = [(unit.offset, unit.verdict) for unit in units if unit.verdict]
    if not judged:
        return
    comparison = listed.comparison
    task = TASKS[comparison.task]
    label = comparison.presented(order)[1]
    media = list(shown_media(comparison, order))
    prompt, hashed_template = render(comparison, order, template), template_hash(template)
    for offset, verdict in judged:
        entry = entry_at(journal, offset)
        row = {
            "conversations": conversation(prompt, entry["text"]),
            "images": media if task.medium == "image" else [],
            "videos": media if task.medium == "video" else [],
            "id": listed.key,
            "task": task.name,
            "source": comparison.source,
            "order": order,
            "sample": entry["sample"],
            "label": label,
            "answer": verdict.answer,
            "verdict": verdict.verdict,
            "coherence": verdict.coherence,
            "finish_reason": entry["finish_reason"],
            "model": entry["model"],
            "template_hash": hashed_template,
        }
        yield row, verdict, entry.get("restored", "")


def failed_rows(
    listed: Listed, order: Order, units: list[Unit], journal: IO[bytes]
) -> Iterator[dict[str, Any]]:
    """A row for each failed request, with the samples that it asked for and that are missing."""
    failures = [unit for unit in units if unit.failed]
    for offset in dict.fromkeys(unit.offset for unit in failures):
        samples = [unit.sample for unit in failures if unit.offset == offset]
        entry = entry_at(journal, offset)
        yield {
            "id": listed.key,
            "where": listed.where,
            "reason": entry["reason"],
            "detail": entry["detail"],
            "order": order,
            "samples": samples,
            "units": len(samples),
        }


def _file_of(text: str, verdict: Verdict, allow_incoherent: bool) -> str:
    # A trainer would take a special token for what it stands for, and refuse the whole file.
    return "unusable" if token_fault(text) else destination(verdict, allow_incoherent)


def derive(
    out: Path,
    ledger: Ledger,
    journal: Path,
    templates: Mapping[str, str],
    orders: tuple[Order, ...],
    samples: int,
    allow_incoherent: bool,
) -> Results:
    """Write correct, incorrect, unusable and failed.jsonl anew, in the order of the input.

    The ledger holds the verdicts: nothing is judged here. Raises UserError when a file cannot be
    written; then none of the four is replaced.
    """
    results, tally, further, repeats = Results(), Tally(), 0, 0
    with ExitStack() as stack:
        files = {name: stack.enter_context(atomic_file(out / f"{name}.jsonl")) for name in FILES}
        entries = stack.enter_context(journal.open("rb"))

        def write(name: str, row: dict[str, Any]) -> None:
            files[name].write(dump(row) + "\n")
            results.rows[name] += 1

        def write_failed(row: dict[str, Any]) -> None:
            write("failed", row)
            results.failed_units += row["units"]
            results.reasons[row["reason"]] += row["units"]

        for bad in ledger.bad():
            write_failed(bad | {"order": "", "samples": [], "units": len(orders) * samples})
        for listed in ledger:
            rows, mismatches = [], 0
            template = templates[listed.comparison.task]
            for order in orders:
                units = ledger.units(listed, order, samples)
                texts = []
                for row, verdict, restored in judged_rows(listed, order, units, template, entries):
                    text = row["conversations"][1]["value"]
                    write(_file_of(text, verdict, allow_incoherent), row)
                    rows.append(row)
                    texts.append(text)
                    mismatches += verdict.mismatch
                    if restored:
                        results.restored[restored] += 1
                    if not verdict.answer:
                        end, reason = text[-_END_CHARACTERS:].strip(), row["finish_reason"]
                        # Under an unknown word a whole text is unparsed, too, so it is shown.
                        results.add_end(f"{end} [{reason}]" if ending(reason) == "other" else end)
                further += max(0, len(texts) - 1)
                repeats += len(texts) - len(set(texts))
                for row in failed_rows(listed, order, units, entries):
                    write_failed(row)
            tally.add(rows, mismatches)
    results.metrics = tally.metrics() | {"repeated": share(repeats, further)}
    if ledger.duplicate_count:
        write_jsonl(out / "duplicates.jsonl", ledger.duplicates())
    else:
        (out / "duplicates.jsonl").unlink(missing_ok=True)
    return results
