"""What a merge tells on the console."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cot_reward.pairing import shortcut
from cot_reward.pairing.engine.database import Engine
from cot_reward.pairing.summary import count_presentations


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


def print_summary(out: Path, summary: Mapping[str, Any]) -> None:
    """Print what a merge wrote into the folder, and the warning about shortcuts to stderr."""
    train = out / "train.jsonl"
    balancing = {change: sum(counts.values()) for change, counts in summary["balancing"].items()}
    dropped = balancing["dropped_for_positions"] + balancing["dropped_for_lengths"]
    bad = sum(summary[side].get("bad", 0) for side in ("correct_side", "incorrect_side"))
    answers = summary["chosen_answer"]
    print(
        f"{train}: {summary['pairs']} pairs about {summary['comparisons']} "
        f"comparisons ({dropped} dropped to balance, "
        f"{balancing.get('dropped_by_weights', 0)} by weights); chosen answer 1: "
        f"{answers['1']}, 2: {answers['2']}; same model: {summary['same_model']}; chosen longer: "
        f"{summary['chosen_longer']}; bad rows: {bad}"
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
    accuracies = ", ".join(
        f"{name} {accuracy:.2f}"
        for name, accuracy in summary["shortcut"].items()
        if accuracy is not None
    )
    print(
        "chosen told from rejected without an image (0.5 is chance): "
        + (accuracies or "too few comparisons")
    )
    if warning := shortcut.warning(summary["shortcut"], str(train)):
        print(warning, file=sys.stderr)
