"""The files of a stage 2 run, derived from its ledger and journal: one row per judged response."""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from cot_reward.inference.ledger import Ledger, Listed
from cot_reward.judge import destination, judge
from cot_reward.records import Order, Verdict, conversation, placeholder_in
from cot_reward.stats import Tally
from cot_reward.store import atomic_file, dump, entry_at, write_jsonl
from cot_reward.tasks import TASKS
from cot_reward.tasks.prompts import render, shown, template_hash

FILES = ("correct", "incorrect", "unusable", "failed")


@dataclass
class Results:
    """What the files hold: rows by file, units that failed, failures by reason, and the figures."""

    rows: Counter[str] = field(default_factory=Counter)
    failed_units: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def judged(self) -> int:
        return sum(self.rows[name] for name in FILES[:3])


def judged_row(
    listed: Listed, order: Order, entry: Mapping[str, Any], template: str
) -> tuple[dict[str, Any], Verdict]:
    """The row of a journaled response, and what the judge found."""
    comparison = listed.comparison
    task = TASKS[comparison.task]
    label = comparison.presented(order)[1]
    verdict = judge(entry["text"], task, label, entry["finish_reason"])
    media = list(shown(comparison, order))
    row = {
        "conversations": conversation(render(comparison, order, template), entry["text"]),
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
        "template_hash": template_hash(template),
    }
    return row, verdict


def _file_of(text: str, verdict: Verdict, allow_incoherent: bool) -> str:
    # A trainer would look for a medium behind such a token, and refuse the whole file.
    return "unusable" if placeholder_in(text) else destination(verdict, allow_incoherent)


def derive(
    out: Path,
    ledger: Ledger,
    journal: Path,
    templates: Mapping[str, str],
    orders: tuple[Order, ...],
    samples: int,
    allow_incoherent: bool,
) -> Results:
    """Write correct, incorrect, unusable and failed.jsonl, each whole, in the input's order.

    Raises UserError when a file cannot be written; then none of the four is replaced.
    """
    results, tally = Results(), Tally()
    with ExitStack() as stack:
        files = {name: stack.enter_context(atomic_file(out / f"{name}.jsonl")) for name in FILES}
        source = stack.enter_context(journal.open("rb"))

        def write(name: str, row: dict[str, Any]) -> None:
            files[name].write(dump(row) + "\n")
            results.rows[name] += 1

        def fail(row: dict[str, Any]) -> None:
            write("failed", row)
            results.failed_units += row["units"]
            results.reasons[row["reason"]] += 1

        for bad in ledger.bad():
            fail(bad | {"order": "", "samples": [], "units": len(orders) * samples})
        for listed in ledger:
            rows, mismatches = [], 0
            for order in orders:
                known = ledger.known(listed, order, samples)
                for offset, failed in known.values():
                    if not failed:
                        entry = entry_at(source, offset)
                        template = templates[listed.comparison.task]
                        row, verdict = judged_row(listed, order, entry, template)
                        write(_file_of(entry["text"], verdict, allow_incoherent), row)
                        rows.append(row)
                        mismatches += verdict.mismatch
                for failure in _failures(listed, order, known, source):
                    fail(failure)
            tally.add(rows, mismatches)
    results.figures = tally.metrics()
    if ledger.duplicate_count:
        write_jsonl(out / "duplicates.jsonl", ledger.duplicates())
    else:
        (out / "duplicates.jsonl").unlink(missing_ok=True)
    return results


def _failures(
    listed: Listed, order: Order, known: Mapping[int, tuple[int, bool]], source: IO[bytes]
) -> Iterator[dict[str, Any]]:
    """One row for each failed request, with the samples that it was to bring."""
    for offset in dict.fromkeys(offset for offset, failed in known.values() if failed):
        samples = [sample for sample, state in known.items() if state == (offset, True)]
        entry = entry_at(source, offset)
        yield {
            "id": listed.key,
            "where": listed.where,
            "reason": entry["reason"],
            "detail": entry["detail"],
            "order": order,
            "samples": samples,
            "units": len(samples),
        }
