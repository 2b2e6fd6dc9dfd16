"""What a run says at its end: the account, and why its responses should not be used as they are."""

import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cot_reward.client.wire import one_line
from cot_reward.inference.settings import InferenceSettings

# A share of samples that repeat another one, above which the sampling itself is doubtful.
MANY_REPEATS = 0.9
# So many bad records are named on the console.
MOST_BAD_RECORDS = 50
RESTORED_IN_WORDS = {
    "reasoning_field": "texts that the server's reasoning parser had split",
    "template_opening": "texts whose <think> was missing (a chat template may have opened it)",
}


def metrics_of(first: int) -> str:
    """Of which texts the rates are, when outcomes decided whether there are more."""
    samples = f"{first} samples" if first > 1 else "sample"
    return f"the first {samples} of each order; later ones were asked because of these"


def print_summary(summary: dict[str, Any], out: Path) -> None:
    accuracy, files, account = summary["accuracy"], summary["files"], summary["account"]
    held_out = f"{account['excluded']} held out, " if "excluded" in account else ""
    settled = f"{account['settled']} not needed, " if "settled" in account else ""
    of_first = f"of {summary['metrics_of']}:\n" if "metrics_of" in summary else ""
    print(
        f"{out}: responses: {account['judged']} judged of {account['expected']}, "
        f"{account['failed']} failed, {held_out}{settled}{account['not_asked']} not asked; "
        f"correct.jsonl {files['correct']}, "
        f"incorrect.jsonl {files['incorrect']}, unusable.jsonl {files['unusable']}\n"
        f"{of_first}accuracy {accuracy['share']:.1%} "
        f"[{accuracy['low']:.1%}, {accuracy['high']:.1%}], "
        f"well-formed {summary['well_formed']['share']:.1%}, "
        f"coherent {summary['coherent']['share']:.1%}, "
        f"answers 1: {summary['answers_1']['share']:.1%}, "
        f"{summary['responses_per_second']} responses/s "
        f"(concurrency {summary['concurrency']['mode']}: {summary['concurrency']['limit']})"
    )
    for name, count in summary.get("excluded_comparisons", {}).items():
        print(f"{count} comparisons of {name} were left out")
    if "settled" in account:
        _print_pairs(summary["usable_pairs"])
    if summary["ties"]:
        print(f"records with a tie (a label that prefers neither; not asked): {summary['ties']}")
    if summary["duplicates"]["count"]:
        print(
            f"records whose comparison had come before: {summary['duplicates']['count']} "
            "(duplicates.jsonl)"
        )
    if summary["restored"]:
        counts = ", ".join(
            f"{count} {RESTORED_IN_WORDS[how]}" for how, count in summary["restored"].items()
        )
        print(f"put back together: {counts}")
    if account["failed"]:
        reasons = ", ".join(f"{n} {reason}" for reason, n in summary["failed_reasons"].items())
        print(f"failed responses: {reasons} (failed.jsonl); --retry-failed asks again")


def tell_bad_records(records: Iterable[Mapping[str, str]]) -> Counter[str]:
    """Print the first bad records, and how many more there are; their number by reason."""
    reasons: Counter[str] = Counter()
    for number, bad in enumerate(records):
        reasons[bad["reason"]] += 1
        if number < MOST_BAD_RECORDS:
            print(f"bad record: {bad['where']}: {bad['reason']}: {bad['detail']}", file=sys.stderr)
    if reasons.total() > MOST_BAD_RECORDS:
        print(f"... and {reasons.total() - MOST_BAD_RECORDS:,} more bad records", file=sys.stderr)
    return reasons


def _print_pairs(pairs: dict[str, Any]) -> None:
    orders, tokens = pairs["orders"], pairs["completion_tokens_per_pair"]
    print(
        f"a right and a wrong usable text: in {orders['count']} of {orders['of']} orders, of "
        f"{pairs['comparisons']} comparisons" + (f"; {tokens} tokens for each" if tokens else "")
    )


def problems(summary: dict[str, Any], settings: InferenceSettings) -> list[str]:
    """Why the responses of a complete run should not be used as they are, in words."""
    found = []
    account, parsed = summary["account"], summary["well_formed"]
    wanted = account["expected"] - account.get("excluded", 0)
    if account["failed"] > settings.max_failed * wanted:
        found.append(
            f"{account['failed']} of {wanted} responses failed, more than "
            f"--max-failed {settings.max_failed:g}; see {settings.out / 'failed.jsonl'}"
        )
    unparsed = summary["verdicts"].get("unparsed", 0)
    if settings.structured_output != "off" and unparsed:
        found.append(
            f"{unparsed} responses do not have the form that the server was to force "
            "(--structured-output): it did not force it on all texts, or it broke texts off; "
            "unusable.jsonl has them"
        )
    if parsed["of"] and parsed["share"] < settings.min_parsed:
        ends = "".join(
            f"\n  {count} x '...{one_line(end)}'" for end, count in summary["unparsed_ends"].items()
        )
        template = (
            " ".join(settings.template) or "the project's own prompt (no --template was given)"
        )
        found.append(
            f"{parsed['count']} of {parsed['of']} responses have an answer that can be read, less "
            f"than --min-parsed {settings.min_parsed:g}. Was the model trained on {template}? Are "
            f"{settings.max_tokens} tokens enough? The commonest ends of the others:{ends}"
        )
    return found


def warn_of_repeats(summary: dict[str, Any], settings: InferenceSettings) -> None:
    repeated = summary["repeated"]
    if settings.temperature > 0 and repeated["share"] > MANY_REPEATS:
        print(
            f"warning: {repeated['count']} of {repeated['of']} further samples of a comparison are "
            f"the text of an earlier one, at temperature {settings.temperature:g}; does the server "
            "override the sampling?",
            file=sys.stderr,
        )
