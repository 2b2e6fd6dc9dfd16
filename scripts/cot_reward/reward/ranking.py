"""Candidates ranked by judgements of their pairs."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from cot_reward.reward.bradley_terry import components, fit
from cot_reward.reward.results import Failure, Judgement, Ranking
from cot_reward.reward.schedule import Pairs, pairs_of

NAN = float("nan")
# The index that stands for the reference.
REFERENCE = -1


@dataclass(frozen=True)
class Plan:
    """What is compared to rank `count` candidates.

    twins: of each usable candidate the first one with the same content; REFERENCE for a candidate
        with the content of the reference
    pairs: of such first candidates
    failures: of the candidates that cannot be used
    """

    count: int
    twins: Mapping[int, int]
    pairs: Pairs
    failures: Mapping[int, Failure]
    has_reference: bool


def check_most(count: int, max_comparisons: int | None, has_reference: bool) -> None:
    """Raises ValueError for a number of comparisons that cannot connect the candidates."""
    least = count if has_reference else count - 1
    if max_comparisons is not None and max_comparisons < least:
        raise ValueError(
            f"max_comparisons is {max_comparisons}; {count} candidates need at least {least}"
        )


def plan(
    found: Sequence[Hashable | Failure],
    max_comparisons: int | None,
    seed: int,
    reference: Hashable | Failure | None = None,
) -> Plan:
    """`found` are the contents of the candidates, or why one cannot be used.

    With a `reference` each candidate is compared with it, and with nothing else. Raises ValueError
    as `check_most` does.
    """
    check_most(len(found), max_comparisons, reference is not None)
    failures = {i: one for i, one in enumerate(found) if isinstance(one, Failure)}
    if isinstance(reference, Failure):
        why = Failure(reference.reason, f"the reference: {reference.detail}")
        failures |= {i: why for i in range(len(found)) if i not in failures}
    first: dict[Hashable, int] = {} if reference is None else {reference: REFERENCE}
    twins = {i: first.setdefault(one, i) for i, one in enumerate(found) if i not in failures}
    players = sorted(set(twins.values()) - {REFERENCE})
    if reference is not None:
        pairs = [(i, REFERENCE) for i in players]
    else:
        pairs = [(players[i], players[j]) for i, j in pairs_of(len(players), max_comparisons, seed)]
    return Plan(len(found), twins, pairs, failures, reference is not None)


def ranking(planned: Plan, results: Sequence[Judgement | Failure]) -> Ranking:
    """The ranking by the results of the planned pairs, in their order.

    Strengths of candidates that no comparison connects cannot be compared: the largest group has
    strengths (with a reference its group), the others are failures.
    """
    compared = [(*pair, one) for pair, one in zip(planned.pairs, results, strict=True)]
    judged = [(i, j, one) for i, j, one in compared if isinstance(one, Judgement)]
    players = sorted({*planned.twins.values(), *([REFERENCE] if planned.has_reference else [])})
    values = _values(players, judged, planned.has_reference)
    failures = dict(planned.failures)
    for i, twin in planned.twins.items():
        if twin not in values:
            own = [one for first, second, one in compared if twin in (first, second)]
            alone = Failure("not_connected", "no comparison connects it with the other candidates")
            # The reason of its own failures, if it has nothing else.
            failures[i] = next((one for one in own if isinstance(one, Failure)), alone)
            if any(own):
                failures[i] = alone
    nothing = (NAN, NAN, NAN, NAN)
    rows = [values.get(planned.twins.get(i, i), nothing) for i in range(planned.count)]
    order = sorted(range(planned.count), key=lambda i: (i in failures, -_or_zero(rows[i][1]), i))
    win_rates, strengths, low, high = (tuple(row[column] for row in rows) for column in range(4))
    return Ranking(tuple(order), win_rates, strengths, low, high, tuple(compared), failures)


def _or_zero(value: float) -> float:
    return 0.0 if value != value else value


def _values(
    players: Sequence[int], judged: Sequence[tuple[int, int, Judgement]], has_reference: bool
) -> dict[int, tuple[float, float, float, float]]:
    """Win rate, strength, low and high of the players whose strengths can be compared."""
    place = {player: at for at, player in enumerate(players)}
    groups = components(len(players), [(place[i], place[j]) for i, j, _ in judged])
    if has_reference:
        groups = [one for one in groups if place[REFERENCE] in one]
    # Nobody of several is best where nothing was judged.
    if not groups or (len(groups[0]) == 1 < len(players) and not has_reference):
        return {}
    group = [players[at] for at in groups[0]]
    place = {player: at for at, player in enumerate(group)}
    inside = [(i, j, one) for i, j, one in judged if i in place]
    fitted = fit(
        len(group),
        [(place[i], place[j], one.probability, one.weight) for i, j, one in inside],
        place[REFERENCE] if has_reference else None,
    )
    shares: dict[int, list[float]] = {player: [] for player in group}
    for i, j, one in inside:
        shares[i].append(one.probability)
        shares[j].append(1 - one.probability)
    # The reference (and a candidate of its content) against itself: even.
    rates = [0.5 if player == REFERENCE else fmean(shares[player] or [0.5]) for player in group]
    found = zip(rates, fitted.strengths, fitted.low, fitted.high, strict=True)
    return dict(zip(group, found, strict=True))
