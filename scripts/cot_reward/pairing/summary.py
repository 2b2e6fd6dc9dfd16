"""The numbers in a merge's summary: what the files hold, and what became of every row."""

from collections.abc import Sequence
from typing import Any

from cot_reward.pairing.engine.database import Engine
from cot_reward.pairing.engine.scan import ScannedPart
from cot_reward.pairing.pairs import PAIR_KINDS


def summarise_file(engine: Engine, split: str, trained: str | None) -> dict[str, Any]:
    """What train.jsonl (split "train") or eval.jsonl ("eval") holds.

    `trained` is the model that is trained next; None: not known.
    """
    names = ("pairs", "comparisons", "one", "two", "chosen_longer", "rejected_longer")
    (row,) = engine.run(
        "SELECT count(*), count(DISTINCT id), "
        "count(*) FILTER (chosen_answer = 1), count(*) FILTER (chosen_answer = 2), "
        "count(*) FILTER (longer = 1), count(*) FILTER (longer = -1) "
        "FROM pairs WHERE state = 'used' AND split = ?",
        [split],
    )
    counts = dict(zip(names, row, strict=True))
    kinds = dict.fromkeys(PAIR_KINDS, 0) | dict(
        engine.run(
            "SELECT kind, count(*) FROM pairs WHERE state = 'used' AND split = ? GROUP BY kind",
            [split],
        )
    )
    by_source = engine.run(
        "SELECT source, count(*) FROM pairs WHERE state = 'used' AND split = ? GROUP BY ALL "
        "ORDER BY ALL",
        [split],
    )
    return {
        "pairs": counts["pairs"],
        "comparisons": counts["comparisons"],
        "chosen_answer": {"1": counts["one"], "2": counts["two"]},
        "chosen_longer": counts["chosen_longer"],
        "rejected_longer": counts["rejected_longer"],
        "same_model": kinds["same_model"],
        "cross_model": counts["pairs"] - kinds["same_model"],
        "pair_kinds": kinds,
        "rejected_from_first_pass": kinds["published"] if trained else None,
        "by_source": dict(by_source),
    }


def account_for_rows(engine: Engine, scanned: Sequence[ScannedPart]) -> dict[str, dict[str, int]]:
    """What became of every row, by side; "rows" is the sum of the other counts."""
    account = {}
    fates = _count_fates(engine)
    for side, right_side in (("correct_side", True), ("incorrect_side", False)):
        parts = [entry for entry in scanned if entry.part.right_side == right_side]
        rows, bad = sum(entry.rows for entry in parts), sum(entry.bad_rows for entry in parts)
        foreign = sum(entry.foreign_rows for entry in parts)
        total = sum(fates[right_side].values()) + bad + foreign
        assert total == rows, f"{side}: {total} of {rows} rows are accounted for"
        others = {"bad": bad, "of_other_shares": foreign}
        account[side] = {
            "rows": rows, **{name: n for name, n in others.items() if n}, **fates[right_side]
        }  # fmt: skip
    return account


def _count_fates(engine: Engine) -> dict[bool, dict[str, int]]:
    """What became of every row that could be read, by right side or not."""
    counts: dict[bool, dict[str, int]] = {True: {}, False: {}}
    # A row of several pairs counts by the first of their states: `pair_state` is ordered.
    for right_side, fate, count in engine.run("""
        WITH in_pairs AS (
            SELECT row, min(state) AS state, any_value(split) AS split FROM (
                SELECT chosen_row AS row, state, split FROM pairs
                UNION ALL SELECT rejected_row, state, split FROM pairs)
            GROUP BY row)
        SELECT right_side, CASE
            WHEN row_fates.fate <> '' THEN row_fates.fate
            WHEN in_pairs.state = 'used' AND in_pairs.split = 'eval' THEN 'used_in_eval'
            ELSE coalesce(in_pairs.state::VARCHAR, unpaired_rows.fate, 'no_partner') END AS fate,
            count(*)
        FROM row_fates LEFT JOIN in_pairs USING (row) LEFT JOIN unpaired_rows USING (row)
        GROUP BY ALL ORDER BY ALL"""):
        counts[right_side][fate] = count
    return counts


def count_presentations(engine: Engine) -> dict[str, int]:
    """How many presentations have usable right texts, usable wrong texts, and both."""
    (row,) = engine.run(
        "SELECT count(*) FILTER (correct), count(*) FILTER (wrong), "
        "count(*) FILTER (correct AND wrong) FROM ("
        "SELECT bool_or(right_side) AS correct, bool_or(NOT right_side) AS wrong FROM row_fates "
        "WHERE fate = '' GROUP BY presentation)"
    )
    return dict(zip(("with_chosen", "with_rejected", "with_both"), row, strict=True))


def count_contradictory(engine: Engine) -> int:
    """How many comparisons have two preferred candidates."""
    ((count,),) = engine.run("SELECT count(*) FROM contradictory")
    return int(count)


def count_first_choices(engine: Engine) -> int:
    """How many pairs were used before balancing."""
    ((count,),) = engine.run("SELECT count(*) FROM pairs WHERE first_choice")
    return int(count)


def pass_rate_histogram(engine: Engine) -> dict[str, int]:
    """Comparisons by the share of their samples that is right, to two decimals."""
    rows = engine.run(
        "SELECT round(rate, 2) AS share, count(*) FROM pass_rates GROUP BY share ORDER BY share"
    )
    return {f"{share:.2f}": count for share, count in rows}
