"""The table `pairs`: every possible pair, its split (train, eval), and whether it is used.

`state` says what became of a pair. Its values are in order of precedence: a response that is in
several pairs counts once, by the first of their states (`summary.account_for_rows`). `fit` is false
for a pair that may not be taken in place of another one. A spare pair (`pairs.Pair`) is not fit; it
is `admissible` where a new choice among all pairs may take it.
"""

from collections.abc import Iterator

import pyarrow as pa

from cot_reward.pairing.engine.database import Engine

# In order of precedence. `balance` drops used pairs, and exchanges used and unselected pairs.
_STATES = "'used', 'dropped_by_balance', 'dropped_by_share', 'dropped_by_weights', 'unselected'"
# A total order of a comparison's pairs, so that the order of the input changes nothing.
BEST_FIRST = "cost, presentation, rank_in_presentation"
# The number `pair`: the batch, shifted by this many bits, plus the first byte of the DPO row in it.
_START_BITS = 40
_ROWS_PER_FETCH = 10_000
_PAIRS_PER_SLICE = 50_000


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
    limit = f"rank_in_comparison <= {pairs_per_comparison}" if pairs_per_comparison else "true"
    # A comparison gets one source, even if several data sets hold it.
    of_batches = f"""
        SELECT *, fit AND {limit} AS first_choice,
            if(first_choice, 'used', 'unselected')::pair_state AS state
        FROM (
            SELECT *, row_number() OVER (PARTITION BY id, fit ORDER BY {BEST_FIRST})
                AS rank_in_comparison
            FROM (
                SELECT * EXCLUDE (source, task), (batch << {_START_BITS}) | start AS pair,
                    'train' AS split,
                    coalesce(min(nullif(source, '')) OVER (PARTITION BY id), '') AS source,
                    min(task) OVER (PARTITION BY id) AS task,
                    if({separate_kinds}, kind, '') AS own_kind,
                    NOT {prefer_one_model} OR kind = 'same_model'
                        OR NOT bool_or(kind = 'same_model') OVER (PARTITION BY id) AS admissible,
                    admissible AND NOT spare AS fit
                FROM possible_pairs WHERE batch BETWEEN $first AND $last))"""
    engine.run(f"CREATE TYPE pair_state AS ENUM ({_STATES})")
    engine.run(f"CREATE TABLE pairs AS {of_batches} LIMIT 0", {"first": 0, "last": 0})
    for first, last in _slices(engine):
        engine.run(f"INSERT INTO pairs {of_batches}", {"first": first, "last": last})
    if eval_fraction:
        _hold_out(engine, eval_fraction, seed)


def _slices(engine: Engine) -> Iterator[tuple[int, int]]:
    """Ranges of batches (first, last) with some ten thousand pairs each.

    A comparison is in one batch, and `select_pairs` looks at one comparison at a time. All pairs at
    once would need memory in proportion to their number.
    """
    first, pairs = None, 0
    for batch, count in engine.run(
        "SELECT batch, count(*) FROM possible_pairs GROUP BY batch ORDER BY batch"
    ):
        first, pairs = batch if first is None else first, pairs + count
        if pairs >= _PAIRS_PER_SLICE:
            yield first, batch
            first, pairs = None, 0
    if first is not None:
        yield first, batch


def _hold_out(engine: Engine, eval_fraction: float, seed: int) -> None:
    """Move a share of the comparisons to the split "eval".

    Comparisons that share a medium or a caption, also by way of other comparisons, are of one
    family and go to one split. Families in the order of chance are held out while they fit into
    the share, so a family that is larger than the share stays in "train". Where no family fits,
    single comparisons are held out (see `count_leaks`). With the same seed, nearly the same
    comparisons are held out when data are added.
    """
    _find_families(engine)
    ((comparisons,),) = engine.run("SELECT count(*) FROM families")
    # At least one of several comparisons, and never all.
    room = max(min(max(round(eval_fraction * comparisons), 1), comparisons - 1), 0)
    for unit in ("family", "number"):
        held_out = []
        for name, size in _in_turns(engine, unit, seed):
            if size <= room:
                held_out.append(name)
                room -= size
            if not room:
                break
        if held_out:
            break
    engine.run(
        f"UPDATE pairs SET split = 'eval' WHERE id IN "
        f"(SELECT id FROM families WHERE {unit} IN (SELECT unnest($held_out::BIGINT[])))",
        {"held_out": held_out},
    )


def _in_turns(engine: Engine, unit: str, seed: int) -> Iterator[tuple[int, int]]:
    """The families or comparisons (`unit`: a column of `families`) by chance, with their sizes.

    Each source, task and answer gives its share to every part of the list, so that balancing has
    little to drop.
    """
    # A cursor of its own: not all of them are needed, and they need not fit into memory.
    cursor = engine.database.cursor().execute(
        f"""
        WITH units AS (
            SELECT {unit} AS unit, count(*) AS size, md5($seed || ' eval ' || min(id)) AS chance,
                arg_min((source, task, chosen_answer), id) AS kind
            FROM pairs JOIN families USING (id) WHERE rank_in_comparison = 1 AND fit GROUP BY unit)
        SELECT unit, size FROM units ORDER BY
            (sum(size) OVER (PARTITION BY kind ORDER BY chance, unit) - size / 2)
                / sum(size) OVER (PARTITION BY kind), chance, unit""",
        {"seed": str(seed)},
    )
    while rows := cursor.fetchmany(_ROWS_PER_FETCH):
        yield from rows


def _find_families(engine: Engine) -> None:
    """Make the table `families` (id, number, family): connected comparisons are of one family."""
    import numpy as np
    from scipy.sparse import coo_matrix, csgraph

    engine.run(
        "CREATE OR REPLACE TABLE numbered AS "
        "SELECT id, row_number() OVER (ORDER BY id) - 1 AS number FROM pairs GROUP BY id"
    )
    links = engine.database.execute(
        # What one comparison alone shows connects nothing, and would only take memory.
        "WITH nodes AS (SELECT DISTINCT id, unnest(shown) AS node FROM pairs), "
        "linking AS (SELECT node FROM nodes GROUP BY node HAVING count(*) > 1) "
        "SELECT number, dense_rank() OVER (ORDER BY node) - 1 AS node "
        "FROM nodes SEMI JOIN linking USING (node) JOIN numbered USING (id)"
    ).fetchnumpy()
    ((count,),) = engine.run("SELECT count(*) FROM numbered")
    nodes = int(links["node"].max()) + 1 if len(links["node"]) else 0
    ends = links["number"].astype(np.int64, copy=False), links["node"].astype(np.int64) + count
    graph = coo_matrix((np.ones(len(ends[0]), dtype=bool), ends), shape=(count + nodes,) * 2)
    _, family = csgraph.connected_components(graph, directed=False)
    numbers = pa.table({"number": np.arange(count), "family": family[:count].astype(np.int64)})
    engine.add("family_numbers", numbers)
    engine.run(
        "CREATE OR REPLACE TABLE families AS "
        "SELECT id, number, family FROM numbered JOIN family_numbers USING (number)"
    )


def count_leaks(engine: Engine) -> dict[str, int]:
    """How many used comparisons of "eval" there are, and how many share something with "train".

    They share a medium or a caption with a comparison whose pairs are used there.
    """
    (row,) = engine.run("""
        WITH shown AS (
            SELECT DISTINCT id, split, unnest(shown) AS node FROM pairs WHERE state = 'used'),
        leaks AS (
            SELECT DISTINCT id FROM shown SEMI JOIN (FROM shown WHERE split = 'train') AS other
            USING (node) WHERE split = 'eval')
        SELECT count(DISTINCT id), (SELECT count(*) FROM leaks)
        FROM pairs WHERE state = 'used' AND split = 'eval'""")
    return dict(zip(("comparisons", "shared_with_train"), row, strict=True))
