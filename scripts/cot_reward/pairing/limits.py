"""The most pairs of each stratum, so that sources or kinds of pairs have their shares."""

from collections import defaultdict
from collections.abc import Mapping, Set

from cot_reward.errors import UserError, nearest

Stratum = tuple[str, str, str, str]  # split, source, task, kind of pairs or ""


def limits_by_weight(
    counts: Mapping[Stratum, int], weights: Mapping[str, float], sources: Set[str]
) -> dict[Stratum, int]:
    """The most pairs of each stratum, so that each split's sources have shares like their weights.

    Raises UserError for a weight of an unknown source.
    """
    for name in weights:
        if name not in sources:
            raise UserError(
                f"--source-weights: no pair has the source {name!r}; there are "
                + ", ".join(map(repr, sorted(sources)))
                + "."
                + nearest(name, sources)
            )
    limits = {}
    for split in {split for split, *_ in counts}:
        by_source: dict[str, int] = defaultdict(int)
        for (stratum_split, source, *_), count in counts.items():
            if stratum_split == split:
                by_source[source] += count
        weight = {source: weights.get(source, 1.0) for source in by_source}
        unit = min(
            (by_source[source] / weight[source] for source in by_source if weight[source]),
            default=0.0,
        )
        for source, count in by_source.items():
            # The small number: rounding must not take a pair from the source that sets the unit.
            limit, left = int(unit * weight[source] + 1e-6), count
            for stratum in sorted(counts):
                if stratum[:2] == (split, source):
                    limits[stratum] = round(limit * counts[stratum] / left) if left else 0
                    limit, left = limit - limits[stratum], left - counts[stratum]
    return limits


def limits_by_share(counts: Mapping[Stratum, int], share: float) -> dict[Stratum, int]:
    """The most pairs of each stratum, so that published pairs have this share of each split.

    A split without pairs of one kind stays as it is.
    """
    limits = dict(counts)
    for split in {split for split, *_ in counts}:
        of_split = {stratum: n for stratum, n in counts.items() if stratum[0] == split}
        left = dict.fromkeys((True, False), 0)
        for stratum, count in of_split.items():
            left[stratum[3] == "published"] += count
        if not all(left.values()):
            continue
        total = min(left[True] / share, left[False] / (1 - share))
        open_ = {True: round(total * share), False: round(total * (1 - share))}
        # Each stratum gives its part, rounded so that the parts add up to the limit.
        for stratum in sorted(of_split):
            kind = stratum[3] == "published"
            limits[stratum] = round(open_[kind] * counts[stratum] / left[kind])
            open_[kind] -= limits[stratum]
            left[kind] -= counts[stratum]
    return limits
