"""What a merge tells on the console."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cot_reward.pairing import shortcut
from cot_reward.pairing.engine.database import Engine
from cot_reward.pairing.summary import count_presentations
from cot_reward.rows.few_pairs import few_pairs_warning

_KIND_NAMES = {
    "same_model": "pairs of one model",
    "published": "pairs with a wrong text of the first pass",
    "other_cross_model": "other pairs of two models",
}


def no_pair_message(engine: Engine, account: Mapping[str, Mapping[str, int]]) -> str:
    """Why there is no pair: what became of the rows of both sides."""
    usable = dict(
        engine.run("SELECT right_side, count(*) FROM row_fates WHERE fate = '' GROUP BY right_side")
    )
    return (
        f"no pair: {usable.get(True, 0)} usable correct and {usable.get(False, 0)} usable "
        f"incorrect responses share {count_presentations(engine)['with_both']} presentations; "
        f"correct side {account['correct_side']}, incorrect side {account['incorrect_side']}"
    )


def prompt_warning(account: Mapping[str, Mapping[str, int]]) -> str:
    """What to know when texts are in no pair because of their prompts; "" otherwise."""
    right, wrong = (side.get("other_prompt", 0) for side in account.values())
    if not right + wrong:
        return ""
    return (
        f"warning: {right:,} correct and {wrong:,} incorrect texts are in no pair, because the "
        "texts on the other side answer a prompt of another wording; sample both passes with one "
        "--template"
    )


def too_many_pairs_note(most: int) -> str:
    return (
        f"note: more than {most:,} pairs are possible, so that --balance-lengths chooses among "
        "those that a first choice leaves; the best choice of all could keep more"
    )


def leak_warning(leaks: Mapping[str, int], trained_on: int, eval_fraction: float) -> str:
    """What to know when eval.jsonl cannot be split off by pictures and captions; "" otherwise."""
    if not leaks:
        return ""
    held_out, shared = leaks["comparisons"], leaks["shared_with_train"]
    if shared:
        return (
            f"warning: --eval-fraction: {shared:,} of {held_out:,} comparisons of eval.jsonl share "
            "a picture or a caption with train.jsonl: the comparisons are too connected to be "
            "split; hold out other data instead (--exclude)"
        )
    share = held_out / max(held_out + trained_on, 1)
    if share < eval_fraction / 2:
        return (
            f"warning: --eval-fraction {eval_fraction}: eval.jsonl has {held_out:,} comparisons "
            f"({share:.1%}), because most are connected by pictures and captions and stay together"
        )
    return ""


def print_summary(out: Path, summary: Mapping[str, Any]) -> None:
    """Print what a merge wrote into the folder, and the warnings to stderr."""
    train = out / "train.jsonl"
    balancing = {change: sum(counts.values()) for change, counts in summary["balancing"].items()}
    dropped = balancing["dropped_for_positions"] + balancing["dropped_for_lengths"]
    bad = sum(summary[side].get("bad", 0) for side in ("correct_side", "incorrect_side"))
    answers = summary["chosen_answer"]
    print(
        f"{train}: {summary['pairs']} pairs about {summary['comparisons']} "
        f"comparisons ({dropped} dropped to balance, "
        f"{balancing.get('dropped_by_weights', 0)} by weights); chosen answer 1: "
        f"{answers['1']}, 2: {answers['2']}; chosen longer: "
        f"{summary['chosen_longer']}; bad rows: {bad}"
    )
    if warning := few_pairs_warning(summary["pairs"]):
        print(warning, file=sys.stderr)
    first_pass = summary["rejected_from_first_pass"]
    print(
        f"{summary['same_model']} pairs of one model, {summary['cross_model']} of two"
        + ("" if first_pass is None else f" ({first_pass} with a wrong text of the first pass)")
    )
    if summary["eval"]:
        print(
            f"{out / 'eval.jsonl'}: {summary['eval']['pairs']} pairs about "
            f"{summary['eval']['comparisons']} comparisons"
        )
    for name, count in summary["excluded_comparisons"].items():
        print(f"{count} comparisons of {name} were left out")
    if summary["contradictory_comparisons"]:
        print(
            f"{summary['contradictory_comparisons']} comparisons have contradictory labels: "
            f"{out / 'contradictory_labels.jsonl'}"
        )
    if bad:
        print(f"bad rows are listed in {out / 'bad_rows.jsonl'}")
    print(
        "chosen told from rejected without an image (0.5 is chance): "
        + _accuracies(summary["shortcut"])
    )
    if warning := shortcut.warning(summary["shortcut"], str(train)):
        print(warning, file=sys.stderr)
    if len(summary["shortcut_by_kind"]) > 1:
        for kind, accuracies in summary["shortcut_by_kind"].items():
            print(f"  {_KIND_NAMES[kind]}: {_accuracies(accuracies)}")
            if warning := shortcut.warning(accuracies, f"{train}, {_KIND_NAMES[kind]}"):
                print(warning, file=sys.stderr)


def _accuracies(by_feature: Mapping[str, float | None]) -> str:
    known = [f"{name} {value:.2f}" for name, value in by_feature.items() if value is not None]
    return ", ".join(known) or "too few comparisons"
