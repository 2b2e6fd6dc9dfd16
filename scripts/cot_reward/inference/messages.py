"""What a run says at its end: the account, and why its responses should not be used as they are."""

import sys
from pathlib import Path
from typing import Any

from cot_reward.client.wire import one_line
from cot_reward.inference.settings import InferenceSettings

# A share of samples that repeat another one, above which the sampling itself is doubtful.
MANY_REPEATS = 0.9
RESTORED_IN_WORDS = {
    "reasoning_field": "texts that the server's reasoning parser had split",
    "template_opening": "texts whose <think> the chat template had opened",
}


def print_summary(summary: dict[str, Any], out: Path) -> None:
    accuracy, files, account = summary["accuracy"], summary["files"], summary["account"]
    print(
        f"{out}: {account['judged']} judged of {account['expected']}, {account['failed']} failed, "
        f"{account['not_asked']} not asked; correct.jsonl {files['correct']}, "
        f"incorrect.jsonl {files['incorrect']}, unusable.jsonl {files['unusable']}\n"
        f"accuracy {accuracy['share']:.1%} [{accuracy['low']:.1%}, {accuracy['high']:.1%}], "
        f"well-formed {summary['well_formed']['share']:.1%}, "
        f"coherent {summary['coherent']['share']:.1%}, "
        f"answers 1: {summary['answers_1']['share']:.1%}, "
        f"{summary['responses_per_second']} responses/s "
        f"(concurrency {summary['concurrency']['mode']}: {summary['concurrency']['limit']})"
    )
    if summary["ties"]:
        print(f"ties (a label that prefers neither candidate; not asked): {summary['ties']}")
    if summary["restored"]:
        counts = ", ".join(
            f"{count} {RESTORED_IN_WORDS[how]}" for how, count in summary["restored"].items()
        )
        print(f"put back together: {counts}")
    if account["failed"]:
        reasons = ", ".join(f"{n} {reason}" for reason, n in summary["failed_reasons"].items())
        print(f"failed.jsonl: {reasons}; --retry-failed asks again")


def problems(summary: dict[str, Any], settings: InferenceSettings) -> list[str]:
    """Why the responses of a complete run should not be used as they are, in words."""
    found = []
    account, parsed = summary["account"], summary["well_formed"]
    failed = account["failed"] / max(1, account["expected"])
    if failed > settings.max_failed:
        found.append(
            f"{account['failed']} of {account['expected']} responses failed, more than "
            f"--max-failed {settings.max_failed:g}; see {settings.out / 'failed.jsonl'}"
        )
    if parsed["of"] and parsed["share"] < settings.min_parsed:
        ends = "".join(
            f"\n  {count} x '...{one_line(end)}'" for end, count in summary["unparsed_ends"].items()
        )
        template = settings.template or "the project's own prompt (no --template was given)"
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
