"""The output files of inference, derived from ledger and journal: one row per judged response."""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from cot_reward.finish_reasons import ending
from cot_reward.inference.ledger import Ledger, Listed, Side, Unit
from cot_reward.inference.until import Rule
from cot_reward.judge import destination
from cot_reward.records import Form, Order, Verdict, conversation, token_fault
from cot_reward.stats import Tally, share
from cot_reward.store import atomic_file, dump, entry_at, write_jsonl
from cot_reward.tasks import TASKS
from cot_reward.tasks.prompts import render, shown_media, template_hash

JUDGED_FILES = ("correct", "incorrect", "unusable")
FILES = (*JUDGED_FILES, "failed")
# A probability of the answer that no log-probs tell.
NOT_KNOWN = -1.0
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
    settled: units that were not needed (see `until`)
    orders, comparisons: how many comparisons in one order were asked; in how many of them, and of
    how many comparisons, a right and a wrong text can make a pair
    """

    rows: Counter[str] = field(default_factory=Counter)
    failed_units: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    metrics: dict[str, Any] = field(default_factory=dict)
    unparsed_ends: Counter[str] = field(default_factory=Counter)
    restored: Counter[str] = field(default_factory=Counter)
    settled: int = 0
    orders: int = 0
    orders_with_pair: int = 0
    comparisons_with_pair: int = 0
    # Of whole requests: see `usable_pairs`.
    completion_tokens: int = 0

    def add_end(self, end: str) -> None:
        if end in self.unparsed_ends or len(self.unparsed_ends) < _MOST_ENDS:
            self.unparsed_ends[end] += 1

    def usable_pairs(self) -> dict[str, Any]:
        """For the summary.

        `completion_tokens` are of the requests of the responses in the files: the server counts a
        request's tokens in all. Where --num-samples was lowered, a request has further responses.
        """
        tokens, pairs = self.completion_tokens, self.orders_with_pair
        return {
            "orders": share(pairs, self.orders),
            "comparisons": self.comparisons_with_pair,
            "completion_tokens": tokens,
            # Some servers do not count tokens.
            "completion_tokens_per_pair": round(tokens / pairs, 1) if tokens and pairs else None,
        }

    @property
    def judged(self) -> int:
        return sum(self.rows[name] for name in JUDGED_FILES)


def judged_rows(
    listed: Listed,
    order: Order,
    units: list[Unit],
    template: str,
    form: Form,
    journal: IO[bytes],
    probabilities: bool,
) -> Iterator[tuple[dict[str, Any], Verdict, dict[str, Any]]]:
    """Of each judged response of a comparison in one order: row, verdict, journal entry.

    `probabilities`: rows have the probability of the answer 1, or NOT_KNOWN.
    """
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
            "images": media,
            "videos": [],
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
            "form": form,
        }
        if probabilities:
            row["probability"] = entry.get("probability", NOT_KNOWN)
        yield row, verdict, entry


def failed_rows(
    listed: Listed, order: Order, failures: list[Unit], journal: IO[bytes]
) -> Iterator[dict[str, Any]]:
    """A row for each failed request, with the missing samples that it stands for."""
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


def _place(text: str, verdict: Verdict, allow_incoherent: bool, rule: Rule) -> tuple[str, Side]:
    """The file of a response, and the side of a pair that it can be on."""
    if token_fault(text):
        # A trainer would take a special token for what it stands for, and refuse the whole file.
        return "unusable", ""
    return destination(verdict, allow_incoherent), rule.side(verdict)


def derive(
    out: Path,
    ledger: Ledger,
    journal: Path,
    templates: Mapping[str, str],
    form: Form,
    orders: tuple[Order, ...],
    rule: Rule,
    allow_incoherent: bool,
    probabilities: bool = False,
) -> Results:
    """Write correct, incorrect, unusable and failed.jsonl anew, in the order of the input.

    The ledger holds the verdicts: nothing is judged here. Samples after the first `rule.first`
    count for no metric: whether they were asked depends on the texts before them. Raises
    UserError when a file cannot be written; then none of the four is replaced.
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
            write_failed(bad | {"order": "", "samples": [], "units": len(orders) * rule.samples})
        for listed in ledger:
            rows, mismatches, has_pair = [], 0, False
            template = templates[listed.comparison.task]
            for order in orders:
                units = ledger.units(listed, order, rule.samples)
                texts, sides = [], set[Side]()
                for row, verdict, entry in judged_rows(
                    listed, order, units, template, form, entries, probabilities
                ):
                    text = row["conversations"][1]["value"]
                    file, side = _place(text, verdict, allow_incoherent, rule)
                    write(file, row)
                    texts.append(text)
                    sides.add(side)
                    results.completion_tokens += entry.get("completion_tokens", 0)
                    if row["sample"] < rule.first:
                        rows.append(row)
                        mismatches += verdict.mismatch
                    if restored := entry.get("restored"):
                        results.restored[restored] += 1
                    if not verdict.answer:
                        end, reason = text[-_END_CHARACTERS:].strip(), row["finish_reason"]
                        # Under an unknown word a whole text is unparsed, too, so it is shown.
                        results.add_end(f"{end} [{reason}]" if ending(reason) == "other" else end)
                further += max(0, len(texts) - 1)
                repeats += len(texts) - len(set(texts))
                state = rule.state(units)
                results.settled += state.settled
                for row in failed_rows(listed, order, state.failed, entries):
                    write_failed(row)
                is_pair = {"right", "wrong"} <= sides
                results.orders += 1
                results.orders_with_pair += is_pair
                has_pair |= is_pair
            results.comparisons_with_pair += has_pair
            tally.add(rows, mismatches)
    results.metrics = tally.metrics() | {"repeated": share(repeats, further)}
    if ledger.duplicate_count:
        write_jsonl(out / "duplicates.jsonl", ledger.duplicates())
    else:
        (out / "duplicates.jsonl").unlink(missing_ok=True)
    return results
