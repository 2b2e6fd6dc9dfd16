"""The table `pairs`: every possible pair, its split (train, eval), and whether it is used.

`state` says what became of a pair. Its values are in order of precedence: a response that is in
several pairs counts once, by the first of their states (`summary.account_for_rows`). `fit` is false
for a pair that may not be taken in place of another one.
"""

from cot_reward.pairing.engine.database import Engine

# In order of precedence. `balance` drops used pairs, and exchanges used and unselected pairs.
_STATES = "'used', 'dropped_by_balance', 'dropped_by_share', 'dropped_by_weights', 'unselected'"
# A total order of a comparison's pairs, so that the order of the input changes nothing.
BEST_FIRST = "cost, presentation, rank_in_presentation"
# The number `pair`: the batch, shifted by this many bits, plus the first byte of the DPO row in it.
_START_BITS = 40


def select_pairs(
    engine: Engine,
    pairs_per_comparison: int | None,
    eval_fraction: float,
    seed: int,
    prefer_one_model: bool = False,
    separate_kinds: bool = False,
) -> None:
    """Make the table `pairs` from `possible_pairs`; use the best pairs of each comparison.

    `pairs_per_comparison` is the most that a comparison gives (None: all). `prefer_one_model`: a
    pair of two models is for a comparison without pairs of one model. `separate_kinds`: each
    kind of pairs is balanced by itself (column `own_kind`; "" otherwise). The column `first_choice`
    keeps which pairs are used before balancing.
    """
    # A comparison gets one source, even if several data sets hold it.
    engine.run(f"""
        CREATE TYPE pair_state AS ENUM ({_STATES});
        CREATE TABLE pairs AS
        SELECT *, row_number() OVER (PARTITION BY id, fit ORDER BY {BEST_FIRST})
                AS rank_in_comparison,
            'unselected'::pair_state AS state
        FROM (
            SELECT * EXCLUDE (source, task), (batch << {_START_BITS}) | start AS pair,
                'train' AS split,
                coalesce(min(nullif(source, '')) OVER (PARTITION BY id), '') AS source,
                min(task) OVER (PARTITION BY id) AS task,
                if({separate_kinds}, kind, '') AS own_kind,
                NOT {prefer_one_model} OR kind = 'same_model'
                    OR NOT bool_or(kind = 'same_model') OVER (PARTITION BY id) AS fit
            FROM possible_pairs)""")
    if eval_fraction:
        _hold_out(engine, eval_fraction, seed)
    limit = f"rank_in_comparison <= {pairs_per_comparison}" if pairs_per_comparison else "true"
    engine.run(
        "ALTER TABLE pairs ADD COLUMN first_choice BOOLEAN;"
        f"UPDATE pairs SET first_choice = fit AND {limit};"
        "UPDATE pairs SET state = 'used' WHERE first_choice"
    )


def _hold_out(engine: Engine, eval_fraction: float, seed: int) -> None:
    """Move a share of the comparisons to the split "eval".

    Each source, task and answer gives its share, so that balancing has little to drop. With the
    same seed, nearly the same comparisons are held out when data are added.
    """
    ((comparisons,),) = engine.run("SELECT count(DISTINCT id) FROM pairs")
    # At least one of several comparisons, and never all.
    held_out = min(max(round(eval_fraction * comparisons), 1), comparisons - 1)
    kind = "source, task, chosen_answer"
    # Rounded over the running sum of the kinds, so that the shares add up to the total.
    engine.run(
        f"""
        UPDATE pairs SET split = 'eval' WHERE id IN (
            WITH ranked AS (
                SELECT id, count(*) OVER (ORDER BY {kind}) AS upto,
                    count(*) OVER (PARTITION BY {kind}) AS size,
                    row_number() OVER (
                        PARTITION BY {kind} ORDER BY md5($seed || ' eval ' || id), id) AS nth
                FROM pairs WHERE rank_in_comparison = 1 AND fit)
            SELECT id FROM ranked
            WHERE nth <= floor(upto * $share + 0.5) - floor((upto - size) * $share + 0.5))""",
        {"seed": str(seed), "share": max(held_out, 0) / max(comparisons, 1)},
    )
