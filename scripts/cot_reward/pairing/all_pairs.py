"""The best choice among all pairs that comparisons could give: one integer programme.

It has an unknown for each pair, so it is for thousands of pairs. `balance` has a way for more.
"""

from collections import defaultdict
from typing import Any, NamedTuple

from cot_reward.pairing.engine.database import Engine
from cot_reward.pairing.quotas import AtMost, Unknown, most_pairs
from cot_reward.pairing.selection import BEST_FIRST

# The programme of 5,000 pairs took 5 s on a loaded machine, that of 20,000 pairs 70 s.
MAX_PAIRS = 10_000
# Of the pairs of a comparison, so many are preferred, the best ones most.
_PREFERRED = 8


class Limits(NamedTuple):
    """The most pairs of a comparison, of a chosen text and of a rejected text (0: unlimited)."""

    per_comparison: int
    chosen_uses: int
    rejected_uses: int


def are_few(engine: Engine) -> bool:
    """Whether all pairs that the pairable rows could make are few enough to choose among them."""
    ((pairs,),) = engine.run(
        "SELECT coalesce(sum(correct * wrong), 0) FROM (SELECT count(*) FILTER (right_side) AS "
        "correct, count(*) FILTER (NOT right_side) AS wrong FROM row_fates WHERE fate = '' "
        "GROUP BY presentation)"
    )
    return bool(pairs <= MAX_PAIRS)


def choose(engine: Engine, limits: Limits, positions: bool) -> list[int]:
    """The pairs of the largest choice that is balanced and keeps the limits.

    Of the largest choices it is one with the best pairs. Raises UserError when none is found in
    time.
    """
    pairs = engine.run(
        "SELECT pair, id, presentation, chosen_text, rejected_text, "
        f"split, source, task, own_kind, {'chosen_answer' if positions else '0'}, longer "
        f"FROM pairs WHERE admissible AND state IN ('used', 'unselected') ORDER BY id, {BEST_FIRST}"
    )
    unknowns, preferred = list[Unknown](), list[int]()
    of_comparison: dict[str, list[int]] = defaultdict(list)
    of_text: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for number, (_, key, place, chosen, rejected, *stratum, answer, longer) in enumerate(pairs):
        split, source, task, kind = stratum
        unknowns.append(Unknown((split, source, task, kind), (answer, longer), 1))
        preferred.append(max(0, _PREFERRED - len(of_comparison[key])))
        of_comparison[key].append(number)
        of_text[place, True, chosen].append(number)
        of_text[place, False, rejected].append(number)
    uses = {True: limits.chosen_uses, False: limits.rejected_uses}
    rules = [AtMost(members, limits.per_comparison) for members in of_comparison.values()]
    rules += [
        AtMost(members, uses[is_chosen])
        for (_, is_chosen, _), members in of_text.items()
        if 0 < uses[is_chosen] < len(members)
    ]
    # The splits have no rule in common.
    found = list[int]()
    for split in sorted({unknown.stratum[0] for unknown in unknowns}):
        here = [n for n, unknown in enumerate(unknowns) if unknown.stratum[0] == split]
        place_of = {number: place for place, number in enumerate(here)}
        inside = [
            AtMost([place_of[n] for n in rule.unknowns], rule.limit)
            for rule in rules
            if rule.unknowns[0] in place_of
        ]
        kept = most_pairs(
            [unknowns[n] for n in here], positions, True, inside, [preferred[n] for n in here]
        )
        found += [pairs[n][0] for n, is_kept in zip(here, kept, strict=True) if is_kept]
    return found
