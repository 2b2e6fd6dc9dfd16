"""The end of a run: its files, its account, its summary, which is written last."""

import sys
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from cot_reward.inference import messages, results
from cot_reward.inference.plan import Run
from cot_reward.inference.results import Results
from cot_reward.provenance import versions
from cot_reward.store import write_json


@dataclass(frozen=True)
class Asking:
    """How the asking went.

    server_gone: why the server was given up, "" if it was not
    unreadable: the run was stopped since its first responses had hardly any answer
    """

    interrupted: bool
    server_gone: str
    unreadable: bool
    metrics: dict[str, Any]


def derive_files(run: Run, journal: Path) -> Results:
    settings = run.settings
    return results.derive(
        settings.out, run.ledger, journal, run.templates, settings.form, settings.asked_orders,
        run.rule, settings.allow_incoherent, settings.answer_probability,
    )  # fmt: skip


def finish(
    run: Run, journal: Path, resolved: dict[str, Any], asking: Asking, started: float
) -> int:
    """Derive the files from the journal, check the account, write the summary last.

    Returns the exit code.
    """
    settings = run.settings
    found = derive_files(run, journal)
    summary = _summary(run, found, resolved, asking, started)
    account = summary["account"]
    messages.print_summary(summary, settings.out)
    if asking.interrupted:
        print("stopped early; the same command continues", file=sys.stderr)
        return 130
    if asking.server_gone:
        print(
            f"error: {asking.server_gone}; everything before is kept, the same command continues",
            file=sys.stderr,
        )
        return 1
    problems = messages.problems(summary, settings)
    if asking.unreadable:
        return _tell(problems, "stopped early; with --min-parsed 0 the same command continues")
    if account["not_asked"]:
        print(f"error: the account does not hold: {account}", file=sys.stderr)
        return 1
    write_json(settings.out / "summary.json", summary)
    if not len(run.ledger):
        print(f"{settings.out}: share {settings.shard} has no comparison of the data")
        return 0
    if not found.judged:
        print(f"error: nothing succeeded; see {settings.out / 'failed.jsonl'}", file=sys.stderr)
        return 1
    messages.warn_of_repeats(summary, settings)
    return _tell(problems, "the files are written; look at them") if problems else 0


def _tell(problems: list[str], then: str) -> int:
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    print(then, file=sys.stderr)
    return 3


def _summary(
    run: Run, found: Results, resolved: dict[str, Any], asking: Asking, started: float
) -> dict[str, Any]:
    first_duplicates = [row["where"] for row in islice(run.ledger.duplicates(), 20)]
    return {
        "stage": "inference",
        "account": {
            "expected": run.expected_units + run.excluded_units,
            "judged": found.judged,
            "failed": found.failed_units,
            **({"excluded": run.excluded_units} if run.held_out else {}),
            "not_asked": run.expected_units - found.judged - found.failed_units - found.settled,
            **({"settled": found.settled} if run.rule.sides else {}),
        },
        **held_out_counts(run),
        **({"metrics_of": messages.metrics_of(run.rule.first)} if run.rule.sides else {}),
        "files": {name: found.rows[name] for name in results.JUDGED_FILES},
        "failed_reasons": dict(found.reasons),
        "ties": run.ledger.tie_count,
        "duplicates": {"count": run.ledger.duplicate_count, "first": first_duplicates},
        **found.metrics,
        "usable_pairs": found.usable_pairs(),
        "unparsed_ends": dict(found.unparsed_ends.most_common(3)),
        "restored": dict(found.restored),
        **{name: run.counts[name] for name in ("prompt_tokens", "completion_tokens", "retries")},
        **asking.metrics,
        "seconds": round(time.monotonic() - started, 2),
        "template_hashes": resolved["templates"],
        "settings": resolved,
        "command": sys.argv,
        "versions": versions("openai", "aiohttp", "pillow"),
    }


def held_out_counts(run: Run) -> dict[str, dict[str, int]]:
    """By held-out file: comparisons of the data that are left out, and those of its pictures."""
    if run.held_out is None:
        return {}
    met = run.held_out.met
    return {
        "excluded_comparisons": {name: found.comparisons for name, found in met.items()},
        "same_pictures_as_excluded": {name: found.of_same_pictures for name, found in met.items()},
    }
