"""Held-out accuracy by source: where the held-out data are several files, each is told apart.

`source` is the data set of a judged row: the file's path below the media root, without its ending.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from cot_reward.stats import bootstrap_mean, paired_difference, share


def accuracy_by_source(
    rows: Iterable[Mapping[str, Any]], by_comparison: Mapping[str, float]
) -> dict[str, dict[str, Any]]:
    """Source -> share of correct responses, with the intervals of a stage's accuracy.

    `by_comparison` is the share of correct responses for each comparison of `rows`. Empty where all
    rows have one source.
    """
    correct: dict[str, list[bool]] = defaultdict(list)
    keys: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        correct[row["source"]].append(row["verdict"] == "correct")
        keys[row["source"]].add(row["id"])
    found = {}
    for source in sorted(correct) if len(correct) > 1 else ():
        low, high = bootstrap_mean([by_comparison[key] for key in sorted(keys[source])])
        hits = correct[source]
        found[source] = share(sum(hits), len(hits))
        found[source] |= {"bootstrap_low": low, "bootstrap_high": high}
    return found


def differences_by_source(
    after: Mapping[str, float], before: Mapping[str, float], sources: Mapping[str, str]
) -> dict[str, dict[str, float]]:
    """Source -> mean difference in accuracy over its comparisons (see `stats.paired_difference`).

    `after` and `before` are comparison -> accuracy of two stages, `sources` comparison -> source.
    Empty where all comparisons have one source.
    """
    keys: dict[str, list[str]] = defaultdict(list)
    for key in sorted(after.keys() & before.keys()):
        keys[sources[key]].append(key)
    if len(keys) < 2:
        return {}
    return {
        source: paired_difference([after[key] for key in own], [before[key] for key in own])
        for source, own in sorted(keys.items())
    }
