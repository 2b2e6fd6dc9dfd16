"""Which of the possible pairs are taken, so that neither position nor length tells the chosen text.

Works on the engine's table `pairs` (`match.PAIRS`). Its columns `split` (train, eval) and `state`
are made here: "1 used" in train, "2 used_in_eval", "3 dropped_by_balance", "4 dropped_by_weights",
"5 unselected", "6 unselected" of pairs that may not be taken instead (see `take`); the figure
orders them, a row of several pairs being in the first.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping

from cot_reward.errors import UserError, nearest
from cot_reward.pairing.engine.database import Engine
from cot_reward.pairing.quotas import Cell, plan, quotas

Stratum = tuple[str, str, str]  # split, source, task

_STRATUM = "split, source, task"
# The order of a comparison's pairs: the best first, never by chance.
_BEST = "cost, presentation, nth"
_WORST = "cost DESC, presentation DESC, nth DESC"


def take(
    engine: Engine, count: int | None, eval_fraction: float, seed: int, one_model: bool = False
) -> None:
    """Split the comparisons, and take the best pairs of each, at most `count` (None: all).

    `one_model`: pairs of two models are left to comparisons that have no others. Each source, task
    and answer gives its share of the held-out comparisons, so that balancing has little to drop.
    The same seed holds out nearly the same ones when data are added.
    """
    # The source of a comparison is one, also where several data sets hold it.
    engine.run(f"""
        CREATE TABLE pairs AS
        SELECT *, row_number() OVER (PARTITION BY id, fit ORDER BY {_BEST}) AS place,
            if(fit, '5 unselected', '6 unselected') AS state
        FROM (
            SELECT * EXCLUDE (source, task), (batch << 40) | start AS pair, 'train' AS split,
                coalesce(min(nullif(source, '')) OVER (PARTITION BY id), '') AS source,
                min(task) OVER (PARTITION BY id) AS task,
                NOT {one_model} OR same_model OR NOT bool_or(same_model) OVER (PARTITION BY id)
                    AS fit
            FROM possible)""")
    if eval_fraction:
        ((comparisons,),) = engine.run("SELECT count(DISTINCT id) FROM pairs")
        # At least one of several, and never all.
        held_out = min(max(round(eval_fraction * comparisons), 1), comparisons - 1)
        kind = "source, task, answer"
        # Rounded over the sum of the kinds so far, so that all shares make up the whole.
        engine.run(
            f"""
            UPDATE pairs SET split = 'eval' WHERE id IN (
                WITH ranked AS (
                    SELECT id, count(*) OVER (ORDER BY {kind}) AS upto,
                        count(*) OVER (PARTITION BY {kind}) AS size,
                        row_number() OVER (
                            PARTITION BY {kind} ORDER BY md5($seed || ' eval ' || id), id) AS nth
                    FROM pairs WHERE place = 1 AND fit)
                SELECT id FROM ranked
                WHERE nth <= floor(upto * $share + 0.5) - floor((upto - size) * $share + 0.5))""",
            {"seed": str(seed), "share": max(held_out, 0) / max(comparisons, 1)},
        )
    engine.run(
        "ALTER TABLE pairs ADD COLUMN first_choice BOOLEAN;"
        f"UPDATE pairs SET first_choice = fit AND {f'place <= {count}' if count else 'true'};"
        "UPDATE pairs SET state = '1 used' WHERE first_choice"
    )


def balance(
    engine: Engine,
    *,
    count: int | None,
    positions: bool,
    lengths: bool,
    weights: Mapping[str, float],
    seed: int,
) -> dict[str, dict[str, int]]:
    """Change the choice until, by split, source and task, it is balanced; then mix the sources.

    Balanced: the numbers differ by at most max(1, 1%). A comparison with pairs of the other kind
    takes those instead (it keeps at most `count`), for positions the cheapest changes first; then
    pairs are dropped, no more than must be: first further pairs of a comparison, then whole
    comparisons, by chance from the seed. Sources keep shares of the pairs in proportion to their
    weights.

    Returns how many pairs were exchanged and dropped, for what, by source and task. Raises
    UserError for a weight of a source that no pair has.
    """
    told: dict[str, Counter[str]] = defaultdict(Counter)
    if positions:
        told["exchanged_for_positions"] = _exchange(engine, seed)
    counts = _cells(engine, positions, lengths)
    if lengths and count is not None:
        told["exchanged_for_lengths"] = _choose(engine, count, positions, seed)
    # Where every pair is taken, or what could be chosen was, nothing is left but to drop.
    left = _cells(engine, positions, lengths)
    kept = {stratum: quotas(cells, positions, lengths) for stratum, cells in left.items()}
    _drop(engine, kept, positions, lengths, "3 dropped_by_balance", seed)
    for stratum, cells in counts.items():
        # What positions alone would have cost; lengths are to blame for the rest.
        of_positions = sum(cells.values()) - sum(quotas(cells, positions, False).values())
        of_both = sum(cells.values()) - sum(kept.get(stratum, {}).values())
        for name, dropped in (("positions", of_positions), ("lengths", of_both - of_positions)):
            told[f"dropped_for_{name}"][_named(stratum)] += dropped
    if weights and counts:
        counts = _cells(engine, positions, lengths)
        known = {source for (source,) in engine.run("SELECT DISTINCT source FROM pairs")}
        limits = _shares(
            {key: sum(cells.values()) for key, cells in counts.items()}, weights, known
        )
        kept = {
            stratum: quotas(cells, positions, lengths, limits[stratum])
            for stratum, cells in counts.items()
        }
        _drop(engine, kept, positions, lengths, "4 dropped_by_weights", seed)
        for stratum, cells in counts.items():
            more = sum(cells.values()) - sum(kept[stratum].values())
            told["dropped_by_weights"][_named(stratum)] += more
    engine.run(
        "UPDATE pairs SET state = '2 used_in_eval' WHERE state = '1 used' AND split = 'eval'"
    )
    return {what: {name: n for name, n in by.items() if n} for what, by in told.items()}


def _named(stratum: Stratum) -> str:
    _, source, task = stratum
    return f"{source}/{task}"


def _counted(engine: Engine, pairs: str) -> Counter[str]:
    """How many of these pairs there are, by source and task."""
    counts: Counter[str] = Counter()
    for split, source, task, count in engine.run(
        f"SELECT {_STRATUM}, count(*) FROM {pairs} GROUP BY ALL"
    ):
        counts[_named((split, source, task))] += count
    return counts


def _exchange(engine: Engine, seed: int) -> Counter[str]:
    """Take pairs of the rarer answer instead of ones of the other, in comparisons that have both.

    Each exchange brings the two numbers nearer by two; those that cost least come first. Returns
    how many there were.
    """
    engine.run(f"""
        CREATE OR REPLACE TABLE needs AS
        SELECT {_STRATUM}, if(surplus > 0, 1, 2) AS common, abs(surplus) // 2 AS exchanges
        FROM (SELECT {_STRATUM},
                  count(*) FILTER (answer = 1) - count(*) FILTER (answer = 2) AS surplus
              FROM pairs WHERE state = '1 used' GROUP BY ALL)
        WHERE abs(surplus) > 1""")
    # The n-th exchange of a comparison: its n-th worst taken pair for its n-th best other one.
    engine.run(
        f"""
        CREATE OR REPLACE TABLE exchanged AS
        WITH
        going AS (
            SELECT pair, id, cost, {_STRATUM}, exchanges,
                row_number() OVER (PARTITION BY id ORDER BY {_WORST}) AS n
            FROM pairs JOIN needs USING ({_STRATUM})
            WHERE state = '1 used' AND answer = common),
        coming AS (
            SELECT pair, id, cost, row_number() OVER (PARTITION BY id ORDER BY {_BEST}) AS n
            FROM pairs JOIN needs USING ({_STRATUM})
            WHERE state = '5 unselected' AND answer = 3 - common)
        SELECT going.pair AS gone, coming.pair AS come
        FROM going JOIN coming USING (id, n)
        QUALIFY row_number() OVER (
            PARTITION BY {_STRATUM}
            ORDER BY coming.cost - going.cost, n, md5($seed || ' exchange ' || id), id
        ) <= exchanges""",
        {"seed": str(seed)},
    )
    engine.run(
        "UPDATE pairs SET state = '5 unselected' WHERE pair IN (SELECT gone FROM exchanged);"
        "UPDATE pairs SET state = '1 used' WHERE pair IN (SELECT come FROM exchanged)"
    )
    return _counted(engine, "exchanged JOIN pairs ON pair = come")


def _choose(engine: Engine, count: int, positions: bool, seed: int) -> Counter[str]:
    """Choose among each comparison's pairs so that as many as can be are kept, evenly.

    Comparisons that offer the same numbers of each cell are one kind; `plan` says how many pairs of
    each cell a kind gives, which are then dealt out in turns. Returns how many pairs are new.
    """
    # What a comparison offers, cell by cell, and takes so far.
    engine.run(f"""
        CREATE OR REPLACE TABLE offers AS
        SELECT id, {_STRATUM}, a, l, least(count(*), {count}) AS offered,
            count(*) FILTER (state = '1 used') AS taken
        FROM (SELECT *, {_cell(positions, True)} FROM pairs
              WHERE state IN ('1 used', '5 unselected'))
        GROUP BY ALL""")
    engine.run(
        f"""
        CREATE OR REPLACE TABLE kinds AS
        SELECT *, -1 + row_number() OVER (
                PARTITION BY {_STRATUM}, kind ORDER BY md5($seed || ' choose ' || id), id) AS nth,
            count(*) OVER (PARTITION BY {_STRATUM}, kind) AS size
        FROM (SELECT id, {_STRATUM}, string_agg(
                  a || ' ' || l || ' ' || offered || ' ' || taken, ',' ORDER BY a, l) AS kind
              FROM offers GROUP BY ALL)""",
        {"seed": str(seed)},
    )
    kinds: dict[Stratum, dict[str, int]] = defaultdict(dict)
    for split, source, task, kind, size in engine.run(
        f"SELECT {_STRATUM}, kind, any_value(size) FROM kinds GROUP BY ALL ORDER BY ALL"
    ):
        kinds[split, source, task][kind] = size
    rows = []
    for stratum, sizes in kinds.items():
        for kind, cells in plan(sizes, count, positions).items():
            start = 0
            for (answer, longer), given in cells.items():
                rows.append((*stratum, kind, answer, longer, start, given))
                start += given
    engine.run(
        "CREATE OR REPLACE TABLE plan (split VARCHAR, source VARCHAR, task VARCHAR, kind VARCHAR, "
        "a BIGINT, l BIGINT, first BIGINT, given BIGINT)"
    )
    if rows:
        engine.database.executemany("INSERT INTO plan VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
    # Dealt out in turns: the n-th comparison of `size` gets units n, n + size, ... of its kind.
    engine.run(f"""
        CREATE OR REPLACE TABLE chosen AS
        WITH gets AS (
            SELECT id, a, l, (floor((first + given - 1 - nth) / size)
                - floor((first - 1 - nth) / size))::BIGINT AS number
            FROM kinds JOIN plan USING ({_STRATUM}, kind) WHERE given > 0),
        ranked AS (
            SELECT pair, id, a, l, state, row_number() OVER (
                PARTITION BY id, a, l ORDER BY state, {_BEST}) AS n
            FROM (SELECT *, {_cell(positions, True)} FROM pairs
                  WHERE state IN ('1 used', '5 unselected')))
        SELECT pair, id, state FROM ranked JOIN gets USING (id, a, l) WHERE n <= number""")
    new = _counted(engine, "chosen JOIN pairs USING (pair) WHERE pairs.state <> '1 used'")
    # A pair that gives way to another one is unselected; one without such a one is dropped.
    engine.run(f"""
        CREATE OR REPLACE TABLE gone AS
        SELECT pair, row_number() OVER (PARTITION BY id ORDER BY {_BEST})
                > coalesce(come.number, 0) AS dropped
        FROM pairs LEFT JOIN (
            SELECT id, count(*) AS number FROM chosen WHERE state <> '1 used' GROUP BY id
        ) AS come USING (id)
        WHERE state = '1 used' AND pair NOT IN (SELECT pair FROM chosen)""")
    engine.run("UPDATE pairs SET state = '1 used' WHERE pair IN (SELECT pair FROM chosen)")
    engine.run(
        "UPDATE pairs SET state = if(dropped, '3 dropped_by_balance', '5 unselected') "
        "FROM gone WHERE gone.pair = pairs.pair"
    )
    return new


def _cell(positions: bool, lengths: bool) -> str:
    return f"{'answer' if positions else '0'} AS a, {'longer' if lengths else '0'} AS l"


def _cells(engine: Engine, positions: bool, lengths: bool) -> dict[Stratum, dict[Cell, int]]:
    """How many pairs are taken of each kind that matters, by stratum."""
    counts: dict[Stratum, dict[Cell, int]] = defaultdict(dict)
    for split, source, task, answer, longer, count in engine.run(
        f"SELECT {_STRATUM}, {_cell(positions, lengths)}, count(*) FROM pairs "
        "WHERE state = '1 used' GROUP BY ALL ORDER BY ALL"
    ):
        counts[split, source, task][answer, longer] = count
    return dict(counts)


def _shares(
    counts: Mapping[Stratum, int], weights: Mapping[str, float], sources: set[str]
) -> dict[Stratum, int]:
    """The most pairs of each stratum, when each split's sources are to have shares like weights."""
    for name in weights:
        if name not in sources:
            raise UserError(
                f"--source-weights: no pair has the source {name!r}; there are "
                + ", ".join(map(repr, sorted(sources)))
                + "."
                + nearest(name, sources)
            )
    limits = {}
    for split in {split for split, _, _ in counts}:
        of: dict[str, int] = defaultdict(int)
        for (where, source, _), count in counts.items():
            if where == split:
                of[source] += count
        weight = {source: weights.get(source, 1.0) for source in of}
        unit = min((of[source] / weight[source] for source in of if weight[source]), default=0.0)
        for source, count in of.items():
            # Rounding must not take one from a source that sets the measure.
            rest, left = int(unit * weight[source] + 1e-6), count
            for stratum in sorted(counts):
                if stratum[:2] == (split, source):
                    limits[stratum] = round(rest * counts[stratum] / left) if left else 0
                    rest, left = rest - limits[stratum], left - counts[stratum]
    return limits


def _drop(
    engine: Engine,
    kept: Mapping[Stratum, Mapping[Cell, int]],
    positions: bool,
    lengths: bool,
    state: str,
    seed: int,
) -> None:
    """Give all but so many taken pairs of each cell another state."""
    engine.run(
        "CREATE OR REPLACE TABLE quotas "
        "(split VARCHAR, source VARCHAR, task VARCHAR, a BIGINT, l BIGINT, kept BIGINT)"
    )
    rows = [(*stratum, *cell, n) for stratum, cells in kept.items() for cell, n in cells.items()]
    if rows:
        engine.database.executemany("INSERT INTO quotas VALUES (?, ?, ?, ?, ?, ?)", rows)
    engine.run(
        f"""
        UPDATE pairs SET state = $state WHERE pair IN (
            WITH taken AS (
                SELECT pair, id, {_STRATUM}, {_cell(positions, lengths)},
                    row_number() OVER (PARTITION BY id ORDER BY {_BEST}) AS n
                FROM pairs WHERE state = '1 used')
            SELECT pair FROM taken JOIN quotas USING ({_STRATUM}, a, l)
            QUALIFY row_number() OVER (
                PARTITION BY {_STRATUM}, a, l ORDER BY n, md5($seed || ' drop ' || id), pair
            ) > kept)""",
        {"state": state, "seed": str(seed)},
    )
