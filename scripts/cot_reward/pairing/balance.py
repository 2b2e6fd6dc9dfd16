"""Which of the possible pairs are taken, so that neither position nor length tells the chosen text.

Works on the engine's table `pairs`, as `selection.select_pairs` makes it, and changes its `state`.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping
from functools import partial

from cot_reward.pairing import all_pairs
from cot_reward.pairing.engine.database import Engine
from cot_reward.pairing.limits import Stratum, limits_by_share, limits_by_weight
from cot_reward.pairing.quotas import Cell, plan, quotas
from cot_reward.pairing.selection import BEST_FIRST

_STRATUM = "split, source, task, own_kind"
_STRATUM_COLUMNS = "split VARCHAR, source VARCHAR, task VARCHAR, own_kind VARCHAR"
_WORST_FIRST = "cost DESC, presentation DESC, rank_in_presentation DESC"
# Pairs that the choice may use: the pairs in use, and the pairs that may replace them.
_AVAILABLE = "fit AND state IN ('used', 'unselected')"


def balance(
    engine: Engine,
    *,
    pairs_per_comparison: int | None,
    positions: bool,
    lengths: bool,
    weights: Mapping[str, float],
    seed: int,
    published_share: float | None = None,
    limits: all_pairs.Limits | None = None,
) -> dict[str, dict[str, int]]:
    """Change the choice until each split, source and task is balanced; then mix the sources.

    With `published_share` the published pairs of each split become this share of its pairs: first
    by exchanges in comparisons that have both kinds, at last by dropping pairs of the kind in
    excess. A split without pairs of one kind stays as it is.
    Balanced: the two numbers differ by at most max(1, 1%), in each of these and in each split (and
    kind of pairs) as a whole. With `limits`, lengths are balanced by a new choice among all pairs,
    the spare ones too. A comparison that has pairs of the other
    kind exchanges (it keeps at most `pairs_per_comparison`; None: all); for positions, the cheapest
    exchanges come first. Then pairs are dropped, as few as possible: first further pairs of a
    comparison, then the only pairs of comparisons, by chance from the seed. Last, sources keep
    numbers of pairs in proportion to their weights.

    Returns how many pairs were exchanged and dropped for what, by source and task. Raises UserError
    for a weight of a source that no pair has.
    """
    changes: dict[str, Counter[str]] = {}
    if published_share is not None:
        changes["exchanged_for_share"] = _exchange_for_share(engine, published_share, seed)
    if positions:
        changes["exchanged_for_positions"] = _exchange_for_positions(engine, seed)
    before = _count_cells(engine, positions, lengths)
    if lengths and pairs_per_comparison is not None:
        changes["exchanged_for_lengths"] = _choose_for_lengths(
            engine, pairs_per_comparison, positions, seed, limits
        )
    if before:
        changes |= _drop_surplus(engine, before, positions, lengths, seed)
        if published_share is not None:
            changes["dropped_for_share"] = _drop_for_share(engine, positions, published_share, seed)
        if weights:
            changes["dropped_by_weights"] = _mix_sources(engine, positions, lengths, weights, seed)
    return {what: {name: n for name, n in counts.items() if n} for what, counts in changes.items()}


def _source_and_task(stratum: Stratum) -> str:
    _, source, task, _ = stratum
    return f"{source}/{task}"


def _count_by_source_and_task(engine: Engine, pairs: str) -> Counter[str]:
    """How many rows this table expression has, by source and task."""
    counts: Counter[str] = Counter()
    for *stratum, count in engine.run(
        f"SELECT {_STRATUM}, count(*) FROM {pairs} GROUP BY ALL ORDER BY ALL"
    ):
        split, source, task, kind = stratum
        counts[_source_and_task((split, source, task, kind))] += count
    return counts


def _cell(positions: bool, lengths: bool) -> str:
    """The columns of a cell; a balance that is not wanted puts all pairs into one cell."""
    answer, longer = "chosen_answer" if positions else "0", "longer" if lengths else "0"
    return f"{answer} AS cell_answer, {longer} AS cell_longer"


def _count_cells(engine: Engine, positions: bool, lengths: bool) -> dict[Stratum, dict[Cell, int]]:
    """How many pairs of each cell are used, by stratum."""
    counts: dict[Stratum, dict[Cell, int]] = defaultdict(dict)
    for split, source, task, kind, answer, longer, count in engine.run(
        f"SELECT {_STRATUM}, {_cell(positions, lengths)}, count(*) FROM pairs "
        "WHERE state = 'used' GROUP BY ALL ORDER BY ALL"
    ):
        counts[split, source, task, kind][answer, longer] = count
    return dict(counts)


def _fill(engine: Engine, table: str, columns: str, rows: list[tuple[object, ...]]) -> None:
    """Make a table of these columns ("NAME TYPE, ...") and rows."""
    engine.run(f"CREATE OR REPLACE TABLE {table} ({columns})")
    if rows:
        marks = ", ".join("?" * len(rows[0]))
        engine.database.executemany(f"INSERT INTO {table} VALUES ({marks})", rows)


# --- positions ------------------------------------------------------------------------------------


def _exchange_for_positions(engine: Engine, seed: int) -> Counter[str]:
    """Use pairs of the rarer answer in place of the other, in comparisons that have both.

    Each exchange brings the two numbers of a stratum nearer by two; the cheapest exchanges come
    first. Strata of odd numbers then lean by one pair. Where these leans add up to one side in a
    split (or in a kind of pairs in it), one more exchange turns a stratum's lean round. Returns how
    many exchanges there were.
    """
    surplus = f"""
        SELECT {_STRATUM}, count(*) FILTER (chosen_answer = 1)
            - count(*) FILTER (chosen_answer = 2) AS surplus
        FROM pairs WHERE state = 'used' GROUP BY ALL"""
    engine.run(f"""
        CREATE OR REPLACE TABLE needs AS
        SELECT {_STRATUM}, if(surplus > 0, 1, 2) AS common_answer, abs(surplus) // 2 AS exchanges
        FROM ({surplus}) WHERE abs(surplus) > 1""")
    exchange = partial(
        _exchange, engine, _STRATUM, "chosen_answer = common_answer",
        "chosen_answer = 3 - common_answer", seed,
    )  # fmt: skip
    exchanged = exchange()
    # A larger surplus, which no exchange could lower, is about one pair after dropping.
    engine.run(f"""
        CREATE OR REPLACE TABLE needs AS
        SELECT {_STRATUM}, if(surplus > 0, 1, 2) AS common_answer, 1 AS exchanges,
            abs(sum(sign(surplus)) OVER of_group)::BIGINT // 2 AS exchanges_of_group
        FROM ({surplus})
        WINDOW of_group AS (PARTITION BY split, own_kind)
        QUALIFY abs(surplus) = 1 AND surplus * sum(sign(surplus)) OVER of_group > 1""")
    return exchanged + exchange(group="split, own_kind")


def _exchange(
    engine: Engine, stratum: str, goes: str, comes: str, seed: int, group: str = ""
) -> Counter[str]:
    """Use unselected pairs that come in place of used pairs that go, within their comparisons.

    The table `needs` has the columns of `stratum` and the most `exchanges` of each; `goes` and
    `comes` are conditions on a pair and on `needs`. The cheapest exchanges come first; the two
    chosen answers take turns. With `group` (some of the columns of `stratum`) all strata of a group
    have together at most its `exchanges_of_group`. Returns how many exchanges there were.
    """
    of_group = (
        f"QUALIFY row_number() OVER (PARTITION BY {group} "
        "ORDER BY price, md5($seed || ' group ' || id), id) <= exchanges_of_group"
    )
    # The n-th exchange of a comparison: its n-th worst used pair for its n-th best unused one.
    engine.run(
        f"""
        CREATE OR REPLACE TABLE exchanged AS
        WITH
        going AS (
            SELECT pair, id, cost, {stratum},
                row_number() OVER (PARTITION BY id, {stratum} ORDER BY {_WORST_FIRST}) AS n
            FROM pairs JOIN needs USING ({stratum}) WHERE state = 'used' AND {goes}),
        coming AS (
            SELECT pair, id, cost, {stratum}, chosen_answer,
                row_number() OVER (PARTITION BY id, {stratum} ORDER BY {BEST_FIRST}) AS n
            FROM pairs JOIN needs USING ({stratum})
            WHERE fit AND state = 'unselected' AND {comes}),
        possible AS (
            SELECT going.pair AS going, coming.pair AS coming, {stratum}, id,
                coming.cost - going.cost AS price,
                row_number() OVER (
                    PARTITION BY {stratum}, chosen_answer
                    ORDER BY price, n, md5($seed || ' exchange ' || id), id
                ) AS turn
            FROM going JOIN coming USING (id, {stratum}, n)),
        of_strata AS (
            FROM possible JOIN needs USING ({stratum})
            QUALIFY row_number() OVER (
                PARTITION BY {stratum} ORDER BY turn, md5($seed || ' turn ' || id), id
            ) <= exchanges)
        SELECT going, coming FROM of_strata {of_group if group else ""}""",
        {"seed": str(seed)},
    )
    engine.run(
        "UPDATE pairs SET state = 'unselected' WHERE pair IN (SELECT going FROM exchanged);"
        "UPDATE pairs SET state = 'used' WHERE pair IN (SELECT coming FROM exchanged)"
    )
    return _count_by_source_and_task(engine, "exchanged JOIN pairs ON pair = coming")


# --- kinds of pairs -------------------------------------------------------------------------------


def _exchange_for_share(engine: Engine, share: float, seed: int) -> Counter[str]:
    """Use pairs of the kind that is short in place of the other, in comparisons that have both.

    The cheapest exchanges come first; the two chosen answers take turns, so that no kind leans to a
    position. Returns how many exchanges there were.
    """
    engine.run(
        """
        CREATE OR REPLACE TABLE needs AS
        SELECT split, source, task, published < wanted AS short_of_published,
            abs(published - wanted) AS exchanges
        FROM (SELECT split, source, task, count(*) FILTER (kind = 'published') AS published,
                  round(count(*) * $share)::BIGINT AS wanted
              FROM pairs WHERE state = 'used' GROUP BY ALL)
        WHERE published <> wanted""",
        {"share": share},
    )
    return _exchange(
        engine,
        "split, source, task",
        "(kind = 'published') <> short_of_published",
        "(kind = 'published') = short_of_published",
        seed,
    )


# --- lengths --------------------------------------------------------------------------------------


def _choose_for_lengths(
    engine: Engine,
    pairs_per_comparison: int,
    positions: bool,
    seed: int,
    limits: all_pairs.Limits | None,
) -> Counter[str]:
    """Choose among each comparison's possible pairs so that as many as possible are kept, evenly.

    With `limits` the choice is the best of all. Without them the possible pairs are those that
    `pairs_of` takes within its limits. With one pair a comparison these are enough for the best
    choice of all. With several, texts that are used up may stand in the way of a better choice.
    Returns how many pairs are new.
    """
    if limits is None:
        _choose_by_kinds(engine, pairs_per_comparison, positions, seed)
    else:
        pairs = all_pairs.choose(engine, limits, positions)
        engine.run(
            "CREATE OR REPLACE TABLE chosen AS SELECT pair, id, state FROM pairs "
            "WHERE pair IN (SELECT unnest($pairs::BIGINT[]))",
            {"pairs": pairs},
        )
    new = _count_by_source_and_task(
        engine, "chosen JOIN pairs USING (pair) WHERE pairs.state <> 'used'"
    )
    # A used pair that another pair replaces becomes unselected; a pair without a replacement is
    # dropped.
    engine.run(f"""
        CREATE OR REPLACE TABLE going AS
        SELECT pair, row_number() OVER (PARTITION BY id ORDER BY {BEST_FIRST})
                > coalesce(coming.number, 0) AS dropped
        FROM pairs LEFT JOIN (
            SELECT id, count(*) AS number FROM chosen WHERE state <> 'used' GROUP BY id
        ) AS coming USING (id)
        WHERE state = 'used' AND pair NOT IN (SELECT pair FROM chosen)""")
    engine.run(
        "UPDATE pairs SET state = 'used' WHERE pair IN (SELECT pair FROM chosen);"
        "UPDATE pairs SET state = if(dropped, 'dropped_by_balance', 'unselected')::pair_state "
        "FROM going WHERE going.pair = pairs.pair"
    )
    return new


def _choose_by_kinds(engine: Engine, pairs_per_comparison: int, positions: bool, seed: int) -> None:
    """Make the table `chosen` from the pairs that are no spare ones.

    Comparisons that offer the same numbers of pairs in each cell are of one kind. `plan` says
    how many pairs of each cell all comparisons of a kind give.
    """
    # What a comparison offers in each cell, and how many pairs of it are used so far.
    engine.run(f"""
        CREATE OR REPLACE TABLE offers AS
        SELECT id, {_STRATUM}, cell_answer, cell_longer,
            least(count(*), {pairs_per_comparison}) AS offered,
            count(*) FILTER (state = 'used') AS used
        FROM (SELECT *, {_cell(positions, True)} FROM pairs WHERE {_AVAILABLE})
        GROUP BY ALL""")
    engine.run(
        f"""
        CREATE OR REPLACE TABLE kinds AS
        SELECT *, -1 + row_number() OVER (
                PARTITION BY {_STRATUM}, kind ORDER BY md5($seed || ' choose ' || id), id) AS nth,
            count(*) OVER (PARTITION BY {_STRATUM}, kind) AS size
        FROM (SELECT id, {_STRATUM}, string_agg(
                  cell_answer || ' ' || cell_longer || ' ' || offered || ' ' || used, ','
                  ORDER BY cell_answer, cell_longer) AS kind
              FROM offers GROUP BY ALL)""",
        {"seed": str(seed)},
    )
    _plan_kinds(engine, pairs_per_comparison, positions)
    _deal_out(engine, positions)


def _plan_kinds(engine: Engine, pairs_per_comparison: int, positions: bool) -> None:
    """Make the table `plan`: how many pairs of each cell a kind gives, and the first one's number.

    The pairs that a kind gives are numbered through all its cells.
    """
    kinds: dict[Stratum, dict[str, int]] = defaultdict(dict)
    for split, source, task, own_kind, kind, size in engine.run(
        f"SELECT {_STRATUM}, kind, any_value(size) FROM kinds GROUP BY ALL ORDER BY ALL"
    ):
        kinds[split, source, task, own_kind][kind] = size
    rows: list[tuple[object, ...]] = []
    for stratum, given_by_kind in plan(kinds, pairs_per_comparison, positions).items():
        for kind, cells in given_by_kind.items():
            first = 0
            for (answer, longer), given in cells.items():
                rows.append((*stratum, kind, answer, longer, first, given))
                first += given
    _fill(
        engine,
        "plan",
        f"{_STRATUM_COLUMNS}, kind VARCHAR, cell_answer BIGINT, cell_longer BIGINT, first BIGINT, "
        "given BIGINT",
        rows,
    )


def _deal_out(engine: Engine, positions: bool) -> None:
    """Make the table `chosen`: the pairs that follow from `kinds` and `plan`.

    Pairs are dealt out in turns: the n-th of `size` comparisons gives the pairs n, n + size, ... of
    its kind. In each cell the used pairs come first, then the best.
    """
    engine.run(f"""
        CREATE OR REPLACE TABLE chosen AS
        WITH gives AS (
            SELECT id, cell_answer, cell_longer, (floor((first + given - 1 - nth) / size)
                - floor((first - 1 - nth) / size))::BIGINT AS number
            FROM kinds JOIN plan USING ({_STRATUM}, kind) WHERE given > 0),
        ranked AS (
            SELECT pair, id, cell_answer, cell_longer, state, row_number() OVER (
                PARTITION BY id, cell_answer, cell_longer ORDER BY state, {BEST_FIRST}) AS n
            FROM (SELECT *, {_cell(positions, True)} FROM pairs WHERE {_AVAILABLE}))
        SELECT pair, id, state FROM ranked JOIN gives USING (id, cell_answer, cell_longer)
        WHERE n <= number""")


# --- dropping -------------------------------------------------------------------------------------


def _drop_surplus(
    engine: Engine,
    before: Mapping[Stratum, Mapping[Cell, int]],
    positions: bool,
    lengths: bool,
    seed: int,
) -> dict[str, Counter[str]]:
    """Drop what is still uneven. `before` has the cells from before pairs were chosen for lengths.

    Returns how many pairs were lost for positions and for lengths.
    """
    cells_of = _count_cells(engine, positions, lengths)
    kept = quotas(cells_of, positions, lengths)
    _drop(engine, kept, positions, lengths, "dropped_by_balance", seed)
    for_positions, for_lengths = Counter[str](), Counter[str]()
    # What positions alone would have cost; the rest of the loss is for lengths.
    for_positions_alone = quotas(before, positions, False) if lengths else kept
    for stratum, cells in before.items():
        # A new choice among all pairs may be larger than the first one.
        loss = max(0, sum(cells.values()) - sum(kept.get(stratum, {}).values()))
        # The programmes may share a loss out among the strata in different ways.
        position_loss = min(loss, sum(cells.values()) - sum(for_positions_alone[stratum].values()))
        for_positions[_source_and_task(stratum)] += position_loss
        for_lengths[_source_and_task(stratum)] += loss - position_loss
    return {"dropped_for_positions": for_positions, "dropped_for_lengths": for_lengths}


def _mix_sources(
    engine: Engine, positions: bool, lengths: bool, weights: Mapping[str, float], seed: int
) -> Counter[str]:
    """Drop pairs until sources have shares like their weights; how many were dropped."""
    cells_of = _count_cells(engine, positions, lengths)
    known = {source for (source,) in engine.run("SELECT DISTINCT source FROM pairs")}
    limits = limits_by_weight(_sizes(cells_of), weights, known)
    return _drop_to(engine, cells_of, limits, positions, lengths, "dropped_by_weights", seed)


def _drop_for_share(engine: Engine, positions: bool, share: float, seed: int) -> Counter[str]:
    """Drop pairs of the kind in excess, until published pairs have their share of each split."""
    cells_of = _count_cells(engine, positions, False)
    limits = limits_by_share(_sizes(cells_of), share)
    return _drop_to(engine, cells_of, limits, positions, False, "dropped_by_share", seed)


def _sizes(cells_of: Mapping[Stratum, Mapping[Cell, int]]) -> dict[Stratum, int]:
    return {stratum: sum(cells.values()) for stratum, cells in cells_of.items()}


def _drop_to(
    engine: Engine,
    cells_of: Mapping[Stratum, Mapping[Cell, int]],
    limits: Mapping[Stratum, int],
    positions: bool,
    lengths: bool,
    state: str,
    seed: int,
) -> Counter[str]:
    """Keep at most these numbers of pairs, balanced, and give the others this state; how many."""
    kept = quotas(cells_of, positions, lengths, limits)
    _drop(engine, kept, positions, lengths, state, seed)
    dropped = Counter[str]()
    for stratum, count in _sizes(cells_of).items():
        dropped[_source_and_task(stratum)] += count - sum(kept[stratum].values())
    return dropped


def _drop(
    engine: Engine,
    kept: Mapping[Stratum, Mapping[Cell, int]],
    positions: bool,
    lengths: bool,
    state: str,
    seed: int,
) -> None:
    """Keep this number of used pairs in each cell, and give the others this state."""
    _fill(
        engine,
        "quotas",
        f"{_STRATUM_COLUMNS}, cell_answer BIGINT, cell_longer BIGINT, kept BIGINT",
        [(*stratum, *cell, n) for stratum, cells in kept.items() for cell, n in cells.items()],
    )
    engine.run(
        f"""
        UPDATE pairs SET state = $state WHERE pair IN (
            WITH used AS (
                SELECT pair, id, {_STRATUM}, {_cell(positions, lengths)},
                    row_number() OVER (PARTITION BY id ORDER BY {BEST_FIRST}) AS n
                FROM pairs WHERE state = 'used')
            SELECT pair FROM used JOIN quotas USING ({_STRATUM}, cell_answer, cell_longer)
            QUALIFY row_number() OVER (
                PARTITION BY {_STRATUM}, cell_answer, cell_longer
                ORDER BY n, md5($seed || ' drop ' || id), pair
            ) > kept)""",
        {"state": state, "seed": str(seed)},
    )
