"""Disjoint pools of comparisons: cold start, sampling, validation, held out.

No two pools share a comparison, a caption or a picture. Comparisons that are linked by one of them
are a family, and go to one pool together.
"""

import random
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from cot_reward.errors import UserError
from cot_reward.preparing.comparisons import RowCounts, labelled, words_of
from cot_reward.preparing.settings import PoolSettings
from cot_reward.records import Candidate, Comparison
from cot_reward.rows.adapters.comparison import plain_row
from cot_reward.store import dump, write_json, write_text_file
from cot_reward.tasks import TASKS
from cot_reward.tasks.prompts import shown_media


@dataclass(frozen=True)
class _Entry:
    """A comparison, its place among all that were read, and the number of its file."""

    number: int
    source: int
    comparison: Comparison


def pool(settings: PoolSettings) -> int:
    """Write the pools and a summary; returns the exit code, 3 for a pool that is not full.

    Raises UserError.
    """
    summary = settings.out / "summary.json"
    if summary.exists():
        raise UserError(
            f"{settings.out}: holds pools already; name another --out, or delete the folder"
        )
    for name in settings.sizes:
        if (file := settings.out / f"{name}.jsonl").exists():
            raise UserError(f"{file}: is there already; name another --out, or another pool")
    entries, read = _read(settings)
    families = _families(entries)
    wanted = _wanted(settings, entries)
    drawn = _draw(families, wanted, settings.seed)
    lacking = False
    for name, chosen in drawn.items():
        chosen.sort(key=lambda entry: entry.number)
        rows = (dump(plain_row(entry.comparison)) + "\n" for entry in chosen)
        write_text_file(settings.out / f"{name}.jsonl", rows)
        by_source = Counter(str(settings.files[entry.source]) for entry in chosen)
        need = sum(wanted[name].values())
        short = f", {need - len(chosen):,} short" if len(chosen) < need else ""
        lacking |= bool(short)
        shares = ", ".join(f"{count:,} of {source}" for source, count in by_source.items())
        print(f"{settings.out / name}.jsonl: {len(chosen):,} comparisons{short} ({shares})")
    largest = max(map(len, families))
    print(
        f"{read['rows']:,} rows, {len(entries):,} comparisons in {len(families):,} families; the "
        f"largest has {largest:,}; {read['bad']:,} bad rows, {read['ties']:,} ties, "
        f"{read['again']:,} that came again"
    )
    write_json(summary, {
        **read, "comparisons": len(entries), "families": len(families), "largest": largest,
        "files": list(map(str, settings.files)), "seed": settings.seed,
        "pools": {name: len(chosen) for name, chosen in drawn.items()},
    })  # fmt: skip
    if lacking:
        print(
            "error: a pool is not full; lower its number, or give more data (families are not "
            "split)",
            file=sys.stderr,
        )
    return 3 if lacking else 0


def _read(settings: PoolSettings) -> tuple[list[_Entry], dict[str, int]]:
    """Each comparison once, and the number of rows, bad rows, ties and repetitions."""
    counts, entries, again = RowCounts(), list[_Entry](), 0
    bad: list[str] = []

    def note_bad(where: str, why: str) -> None:
        if not bad:
            bad.append(f"; the first: {where}: {why}")

    # Of each comparison the candidate that is preferred; () where two rows disagree.
    preferred: dict[str, Candidate] = {}
    for source, _, comparison in labelled(settings, counts, note_bad):
        key = comparison.key
        better = comparison.candidates[comparison.label - 1]
        if key not in preferred:
            preferred[key] = better
            entries.append(_Entry(len(entries), source, comparison))
            continue
        again += 1
        if preferred[key] != better:
            preferred[key] = ()
    read = len(entries)
    entries = [entry for entry in entries if preferred[entry.comparison.key] != ()]
    contradictory = read - len(entries)
    first_bad = "".join(bad)
    if not entries:
        raise UserError(f"{settings.files[0]}: no comparison in {counts.rows:,} rows{first_bad}")
    if counts.bad:
        print(f"warning: {counts.bad:,} bad rows are left out{first_bad}", file=sys.stderr)
    if contradictory:
        print(
            f"warning: {contradictory:,} comparisons that come with both labels are left out",
            file=sys.stderr,
        )
    return entries, {**vars(counts), "again": again, "contradictory": contradictory}


def _families(entries: Sequence[_Entry]) -> list[list[_Entry]]:
    """The entries that are connected by what they share."""
    import numpy as np
    from scipy.sparse import coo_matrix, csgraph

    # Comparisons, and behind them the things that they share, are the nodes of a graph.
    nodes: dict[object, int] = {}
    links = [
        (number, len(entries) + nodes.setdefault(thing, len(nodes)))
        for number, entry in enumerate(entries)
        for thing in _shared(entry.comparison)
    ]
    ends = np.array(links).reshape(-1, 2).T
    size = len(entries) + len(nodes)
    graph = coo_matrix((np.ones(len(links), dtype=bool), tuple(ends)), shape=(size, size))
    _, family_of = csgraph.connected_components(graph, directed=False)
    families: dict[int, list[_Entry]] = {}
    for entry, family in zip(entries, family_of[: len(entries)].tolist(), strict=True):
        families.setdefault(family, []).append(entry)
    return list(families.values())


def _shared(comparison: Comparison) -> Iterator[object]:
    """What no other pool may have. Questions are alike by chance ("What is this?")."""
    if TASKS[comparison.task].compares_media:
        yield "text", words_of(comparison.text)
    yield from shown_media(comparison, "given")


def _wanted(settings: PoolSettings, entries: Sequence[_Entry]) -> dict[str, Counter[int]]:
    """How many comparisons of each file each pool should have."""
    there = Counter(entry.source for entry in entries)
    weights = settings.weights or [float(there[n]) for n in range(len(settings.files))]
    total = sum(weights)
    wanted = {}
    for name, size in settings.sizes.items():
        exact = [size * weight / total for weight in weights]
        shares = [int(share) for share in exact]
        # What rounding left over goes where it took most.
        order = sorted(range(len(exact)), key=lambda n: shares[n] - exact[n])
        for number in order[: size - sum(shares)]:
            shares[number] += 1
        wanted[name] = Counter(dict(enumerate(shares)))
    return wanted


def _draw(
    families: Sequence[Sequence[_Entry]], wanted: Mapping[str, Counter[int]], seed: int
) -> dict[str, list[_Entry]]:
    """Each family to the pool that lacks most of its share, as far as the pool needs it."""
    drawn: dict[str, list[_Entry]] = {name: [] for name in wanted}
    left = {name: Counter(need) for name, need in wanted.items()}
    order = list(families)
    random.Random(seed).shuffle(order)
    for family in order:
        useful = {name: sum(left[name][entry.source] > 0 for entry in family) for name in wanted}
        name = max(
            wanted, key=lambda n: (useful[n] > 0, left[n].total() / max(wanted[n].total(), 1))
        )
        for entry in family:
            if left[name][entry.source] > 0:
                left[name][entry.source] -= 1
                drawn[name].append(entry)
    return drawn
