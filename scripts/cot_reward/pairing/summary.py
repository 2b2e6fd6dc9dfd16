"""What a merge did, in numbers: the parts of its summary."""

from typing import Any

from cot_reward.pairing.engine.database import Engine
from cot_reward.pairing.engine.scan import Seen


def summarise_file(engine: Engine, split: str) -> dict[str, Any]:
    """What train.jsonl ("train") or eval.jsonl ("eval") holds."""
    keys = ("pairs", "comparisons", "one", "two", "chosen_longer", "rejected_longer", "same_model")
    (row,) = engine.run(
        "SELECT count(*), count(DISTINCT id), "
        "count(*) FILTER (answer = 1), count(*) FILTER (answer = 2), "
        "count(*) FILTER (longer = 1), count(*) FILTER (longer = -1), count(*) FILTER (same_model) "
        "FROM pairs WHERE state < '3' AND split = ?",
        [split],
    )
    found = dict(zip(keys, row, strict=True))
    sources = engine.run(
        "SELECT source, count(*) FROM pairs WHERE state < '3' AND split = ? GROUP BY ALL "
        "ORDER BY ALL",
        [split],
    )
    return {
        "pairs": found["pairs"],
        "comparisons": found["comparisons"],
        "chosen_answer": {"1": found["one"], "2": found["two"]},
        "chosen_longer": found["chosen_longer"],
        "rejected_longer": found["rejected_longer"],
        "same_model": found["same_model"],
        "cross_model": found["pairs"] - found["same_model"],
        "by_source": dict(sources),
    }


def account_for_rows(engine: Engine, seen: list[Seen]) -> dict[str, dict[str, int]]:
    """What became of every row, by side: each one is counted once, besides in `rows`."""
    fates = engine.account()
    for side, right_side in (("correct_side", True), ("incorrect_side", False)):
        of = [one for one in seen if one.part.right_side == right_side]
        rows, bad = sum(one.rows for one in of), sum(one.bad for one in of)
        told = sum(fates[side].values()) + bad
        assert told == rows, f"{side}: {told} of {rows} rows are accounted for"
        fates[side] = {"rows": rows, **({"bad": bad} if bad else {}), **fates[side]}
    return fates


def count_presentations(engine: Engine) -> dict[str, int]:
    """Of how many there are usable right texts, wrong ones, and both."""
    (row,) = engine.run(
        "SELECT count(*) FILTER (correct), count(*) FILTER (wrong), "
        "count(*) FILTER (correct AND wrong) FROM ("
        "SELECT bool_or(right_side) AS correct, bool_or(NOT right_side) AS wrong FROM state "
        "WHERE fate = '' GROUP BY presentation)"
    )
    return dict(zip(("with_chosen", "with_rejected", "with_both"), row, strict=True))


def pass_rate_histogram(engine: Engine) -> dict[str, int]:
    """Comparisons by the share of their samples that is right, to two decimals."""
    rows = engine.run(
        "SELECT round(rate, 2) AS share, count(*) FROM rates GROUP BY share ORDER BY share"
    )
    return {f"{share:.2f}": count for share, count in rows}


def no_pair_message(engine: Engine, account: dict[str, dict[str, int]]) -> str:
    usable = dict(
        engine.run("SELECT right_side, count(*) FROM state WHERE fate = '' GROUP BY right_side")
    )
    return (
        f"no pair: {usable.get(True, 0)} usable correct and {usable.get(False, 0)} usable "
        f"incorrect responses share {count_presentations(engine)['with_both']} presentations; "
        f"correct side {account['correct_side']}, incorrect side {account['incorrect_side']}"
    )
