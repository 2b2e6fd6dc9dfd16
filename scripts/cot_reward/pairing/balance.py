"""Which of the possible pairs are taken, so that neither position nor length tells the chosen text.

Works on the engine's table `pairs` (`match.PAIRS`). Its columns `split` (train, eval) and `state`
are made here: "1 used" in train, "2 used_in_eval", "3 dropped_by_balance", "4 dropped_by_weights",
"5 unselected"; the figure orders them, a row of several pairs being in the first.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping

from cot_reward.pairing.engine import Engine
from cot_reward.settings import UserError, nearest

Stratum = tuple[str, str, str]  # split, source, task
Cell = tuple[int, int]  # chosen answer (1, 2), longer (1: chosen, -1: rejected, 0: neither)

_STRATUM = "split, source, task"
# The order of a comparison's pairs: the best first, never by chance.
_BEST = "cost, presentation, nth"
_WORST = "cost DESC, presentation DESC, nth DESC"


def take(engine: Engine, count: int | None, eval_fraction: float, seed: int) -> None:
    """Split the comparisons, and take the best pairs of each, at most `count` (None: all).

    Each source, task and answer gives its share of the held-out ones, so that balancing has little
    to drop. The same seed holds out nearly the same ones when data are added.
    """
    # The source of a comparison, also where several data sets hold it.
    engine.run(f"""
        CREATE TABLE pairs AS
        SELECT * EXCLUDE (source), batch << 40 | start AS pair, 'train' AS split,
            min(source) OVER (PARTITION BY id) AS source,
            row_number() OVER (PARTITION BY id ORDER BY {_BEST}) AS place, '5 unselected' AS state
        FROM possible""")
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
                    FROM pairs WHERE place = 1)
                SELECT id FROM ranked
                WHERE nth <= floor(upto * $share + 0.5) - floor((upto - size) * $share + 0.5))""",
            {"seed": str(seed), "share": max(held_out, 0) / max(comparisons, 1)},
        )
    engine.run(
        "ALTER TABLE pairs ADD COLUMN first_choice BOOLEAN;"
        f"UPDATE pairs SET first_choice = {f'place <= {count}' if count else 'true'};"
        "UPDATE pairs SET state = '1 used' WHERE first_choice"
    )


def balance(
    engine: Engine, *, positions: bool, lengths: bool, weights: Mapping[str, float], seed: int
) -> dict[str, dict[str, int]]:
    """Change the choice until, by split, source and task, it is balanced; then mix the sources.

    Balanced: the numbers differ by at most max(1, 1%). A comparison with pairs of the other kind
    takes those instead, the cheapest changes first; then pairs are dropped, no more than must be:
    first further pairs of a comparison, then whole comparisons, by chance from the seed. Sources
    keep shares of the pairs in proportion to their weights.

    Returns how many pairs were exchanged and dropped, for what, by source and task. Raises
    UserError for a weight of a source that no pair has.
    """
    told: dict[str, Counter[str]] = defaultdict(Counter)
    if positions:
        told["exchanged_for_positions"] = _exchange(engine, "answer", (1, 2), "id", seed)
    if lengths:
        told["exchanged_for_lengths"] = _exchange(engine, "longer", (1, -1), "id, answer", seed)
    counts = _cells(engine, positions, lengths)
    kept = {stratum: quotas(cells, positions, lengths) for stratum, cells in counts.items()}
    _drop(engine, kept, positions, lengths, "3 dropped_by_balance", seed)
    for stratum, cells in counts.items():
        # What positions alone would have cost; lengths are to blame for the rest.
        of_positions = sum(cells.values()) - sum(quotas(cells, positions, False).values())
        of_both = sum(cells.values()) - sum(kept[stratum].values())
        for name, dropped in (("positions", of_positions), ("lengths", of_both - of_positions)):
            told[f"dropped_for_{name}"][_named(stratum)] += dropped
    if weights:
        counts = _cells(engine, positions, lengths)
        limits = _shares({key: sum(cells.values()) for key, cells in counts.items()}, weights)
        kept = {
            stratum: quotas(cells, positions, lengths, limits[stratum])
            for stratum, cells in counts.items()
        }
        _drop(engine, kept, positions, lengths, "4 dropped_by_weights", seed)
        for stratum, cells in counts.items():
            left = sum(cells.values()) - sum(kept[stratum].values())
            told["dropped_by_weights"][_named(stratum)] += left
    engine.run(
        "UPDATE pairs SET state = '2 used_in_eval' WHERE state = '1 used' AND split = 'eval'"
    )
    return {what: {name: n for name, n in by.items() if n} for what, by in told.items()}


def _named(stratum: Stratum) -> str:
    _, source, task = stratum
    return f"{source}/{task}"


def _exchange(
    engine: Engine, column: str, values: tuple[int, int], within: str, seed: int
) -> Counter[str]:
    """Take pairs of the rarer value instead of ones of the other, in comparisons that have both.

    Each exchange brings the two numbers nearer by two; those that cost least come first.
    """
    one, other = values
    engine.run(f"""
        CREATE OR REPLACE TABLE needs AS
        SELECT {_STRATUM}, if(surplus > 0, {one}, {other}) AS common,
            if(surplus > 0, {other}, {one}) AS rare, abs(surplus) // 2 AS exchanges
        FROM (SELECT {_STRATUM},
                  count(*) FILTER ({column} = {one}) - count(*) FILTER ({column} = {other})
                  AS surplus
              FROM pairs WHERE state = '1 used' GROUP BY ALL)
        WHERE abs(surplus) > 1""")
    # The n-th exchange of a comparison: its n-th worst taken pair for its n-th best other one.
    engine.run(
        f"""
        CREATE OR REPLACE TABLE exchanged AS
        WITH
        going AS (
            SELECT pair, {within}, cost, {_STRATUM}, exchanges,
                row_number() OVER (PARTITION BY {within} ORDER BY {_WORST}) AS n
            FROM pairs JOIN needs USING ({_STRATUM})
            WHERE state = '1 used' AND {column} = common),
        coming AS (
            SELECT pair, {within}, cost,
                row_number() OVER (PARTITION BY {within} ORDER BY {_BEST}) AS n
            FROM pairs JOIN needs USING ({_STRATUM})
            WHERE state = '5 unselected' AND {column} = rare)
        SELECT going.pair AS gone, coming.pair AS come
        FROM going JOIN coming USING ({within}, n)
        QUALIFY row_number() OVER (
            PARTITION BY {_STRATUM}
            ORDER BY coming.cost - going.cost, n, md5($seed || ' exchange ' || id), {within}
        ) <= exchanges""",
        {"seed": str(seed)},
    )
    engine.run("UPDATE pairs SET state = '5 unselected' WHERE pair IN (SELECT gone FROM exchanged)")
    engine.run("UPDATE pairs SET state = '1 used' WHERE pair IN (SELECT come FROM exchanged)")
    counts: Counter[str] = Counter()
    for *stratum, count in engine.run(
        f"SELECT {_STRATUM}, count(*) FROM exchanged JOIN pairs ON pair = come GROUP BY ALL"
    ):
        split, source, task = stratum
        counts[_named((split, source, task))] += count
    return counts


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


def quotas(
    cells: Mapping[Cell, int], positions: bool, lengths: bool, limit: int | None = None
) -> dict[Cell, int]:
    """How many of each cell stay: as many as can, balanced, and no more than `limit` in all.

    An integer programme of at most six unknowns, solved exactly.
    """
    import numpy as np
    from scipy.optimize import Bounds, LinearConstraint, milp

    keys = sorted(cells)
    most = np.array([cells[key] for key in keys], dtype=float)
    total = np.ones(len(keys))
    signs = []
    if positions:
        signs.append(np.array([{1: 1, 2: -1}.get(answer, 0) for answer, _ in keys]))
    if lengths:
        signs.append(np.array([longer for _, longer in keys]))
    best: dict[Cell, int] = {}
    # "At most one" is tried before "at most 1% of all", which wins only where it keeps more.
    for loose in range(2 ** len(signs)):
        rows, highs = [], []
        for number, sign in enumerate(signs):
            # In whole numbers: 100 times the difference is at most the total, or at most 100.
            percent = loose >> number & 1
            rows += [100 * sign - percent * total, -100 * sign - percent * total]
            highs += [100 * (1 - percent)] * 2
        if limit is not None:
            rows.append(total)
            highs.append(limit)
        constraints = LinearConstraint(np.array(rows), -np.inf, highs) if rows else ()
        found = milp(
            -total, integrality=total, bounds=Bounds(0, most), constraints=constraints,
            options={"mip_rel_gap": 0},
        )  # fmt: skip
        kept = dict(zip(keys, (round(value) for value in found.x), strict=True))
        if not best or sum(kept.values()) > sum(best.values()):
            best = kept
    return best


def _shares(counts: Mapping[Stratum, int], weights: Mapping[str, float]) -> dict[Stratum, int]:
    """The most pairs of each stratum, when each split's sources are to have shares like weights."""
    sources = {source for _, source, _ in counts}
    for name in weights:
        if name not in sources:
            raise UserError(
                f"--source-weights: no pair has the source '{name}'; there are "
                + ", ".join(f"'{source}'" for source in sorted(sources))
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
