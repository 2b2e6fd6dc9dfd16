"""Join correct and incorrect chains of thought into preference pairs, filter and balance them.

Pure functions over judged texts; files and settings are in `merging`.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cot_reward.records import PreferencePair

# A chosen text may serve in this many pairs of one prompt, a rejected one in one: in trials more
# repetition of the same chosen text made the policy copy it.
_CHOSEN_USES = 2

SELECTIONS = ("closest-text", "closest-length", "random")


@dataclass(frozen=True)
class Judged:
    """One judged completion; `id` and `order` say which presentation it is about."""

    id: str
    order: str
    task: str
    source: str
    prompt: str
    text: str
    images: tuple[str, ...]
    videos: tuple[str, ...]
    answer: int
    model: str
    template_hash: str

    @property
    def presentation(self) -> tuple[str, str, tuple[str, ...], tuple[str, ...]]:
        """What a pair must share: the texts speak of "Image 1", so the order counts."""
        return self.id, self.order, self.images, self.videos


def distance(chosen: str, rejected: str, select: str) -> float:
    """How far two texts are apart: words to change (Levenshtein), or difference in words."""
    first, second = chosen.split(), rejected.split()
    if select == "closest-length":
        return abs(len(first) - len(second))
    from rapidfuzz.distance import Levenshtein

    return Levenshtein.distance(first, second)


def _unique(texts: Iterable[Judged]) -> list[Judged]:
    """One entry for each text of each model, in an order that does not depend on the input's."""
    seen = {(judged.text, judged.model): judged for judged in sorted(texts, key=repr)}
    return [seen[key] for key in sorted(seen)]


def pairs_of(
    chosen: Sequence[Judged],
    rejected: Sequence[Judged],
    count: int,
    select: str,
    same_model: str,
    seed: int,
) -> list[tuple[Judged, Judged]]:
    """At most `count` pairs of one presentation, closest first.

    same_model: "require" pairs texts of one model only, "prefer" takes texts of two models only
    where no model has both kinds, "off" makes no difference between them.
    """
    candidates = [
        (a, b) for a in _unique(chosen) for b in _unique(rejected) if a.answer != b.answer
    ]
    own = [(a, b) for a, b in candidates if a.model == b.model]
    if same_model == "require" or (same_model == "prefer" and own):
        candidates = own
    if select == "random":
        random.Random(f"{seed} {chosen[0].id} {chosen[0].order}").shuffle(candidates)
    else:
        candidates.sort(key=lambda pair: distance(pair[0].text, pair[1].text, select))
    taken: list[tuple[Judged, Judged]] = []
    uses: Counter[tuple[str, str]] = Counter()
    for a, b in candidates:
        if len(taken) == count:
            break
        first, second = ("chosen", a.text), ("rejected", b.text)
        if uses[first] < _CHOSEN_USES and uses[second] < 1:
            uses.update((first, second))
            taken.append((a, b))
    return taken


def balance(
    groups: dict[str, list[tuple[Judged, Judged]]], seed: int
) -> tuple[dict[str, list[tuple[Judged, Judged]]], Counter[str]]:
    """Drop pairs until, per source and task, chosen answers 1 and 2 are about equally many.

    About: they differ by at most max(1, 1%). Of a presentation either all pairs stay or some of
    the majority's are dropped. Returns the groups that are left, and what was dropped by stratum.
    """
    strata: dict[tuple[str, str], list[str]] = defaultdict(list)
    for key, pairs in groups.items():
        if pairs:
            strata[pairs[0][0].source, pairs[0][0].task].append(key)
    kept = dict(groups)
    dropped: Counter[str] = Counter()
    for (source, task), keys in sorted(strata.items()):
        counts = Counter(a.answer for key in keys for a, _ in groups[key])
        major = 1 if counts[1] > counts[2] else 2
        minor = 3 - major
        order = sorted(keys)
        random.Random(f"{seed} {source} {task}").shuffle(order)
        for key in order:
            if counts[major] - counts[minor] <= max(1, 0.01 * counts.total()):
                break
            excess = counts[major] - counts[minor]
            mine = [pair for pair in kept[key] if pair[0].answer == major]
            gone = mine[-excess:] if excess < len(mine) else mine
            if gone:
                kept[key] = [pair for pair in kept[key] if pair not in gone]
                counts[major] -= len(gone)
                dropped[f"{source}/{task}"] += len(gone)
    return kept, dropped


def to_pair(chosen: Judged, rejected: Judged) -> PreferencePair:
    return PreferencePair(
        problem=chosen.prompt,
        chosen=chosen.text,
        rejected=rejected.text,
        images=chosen.images,
        videos=chosen.videos,
        id=chosen.id,
        task=chosen.task,
        order=chosen.order,
        chosen_model=chosen.model,
        rejected_model=rejected.model,
    )
