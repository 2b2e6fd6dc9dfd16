"""Finished benchmark runs beside each other: scores, paired differences, and what they can show."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from cot_reward.errors import UserError
from cot_reward.evaluation.answers import Answers, read_answers
from cot_reward.evaluation.benchmarks import BENCHMARKS
from cot_reward.evaluation.clusters import Clusters, interval, mean
from cot_reward.evaluation.prepare import MANIFEST
from cot_reward.evaluation.strict import OVERALL, group_masks, item_values, strict_score
from cot_reward.evaluation.votes import votes_at
from cot_reward.store import read_json

# A true difference of this many standard errors is found in 80 of 100 tests at 5%.
_DETECTABLE_ERRORS = 2.8


@dataclass(frozen=True)
class Run:
    """The answers of one model to one benchmark, perhaps of several runs with other seeds."""

    model: str
    benchmark: str
    folders: list[Path]
    answers: Answers
    manifest: Mapping[str, Any] = field(default_factory=dict)


def read_runs(folders: Sequence[Path], names: Sequence[str] = ()) -> list[Run]:
    """The runs of some folders; those of one model and benchmark become one.

    A model's name is that of `names`, in the order of the folders, or of the folder above that of
    the benchmark. Raises UserError for a folder that cannot be read, and for runs of one model that
    are about different items.
    """
    if names and len(names) != len(folders):
        raise UserError(f"--names has {len(names)} names for {len(folders)} runs")
    found: dict[tuple[str, str], Run] = {}
    for number, folder in enumerate(folders):
        answers = read_answers(folder)
        manifest = read_json(folder / MANIFEST) if (folder / MANIFEST).exists() else {}
        benchmark = " ".join(filter(None, (manifest.get("benchmark"), manifest.get("split"))))
        model = names[number] if names else _model_name(folder, manifest)
        run = Run(model, benchmark or "rows", [folder], answers, manifest)
        place = run.model, run.benchmark
        found[place] = _joined(found[place], run) if place in found else run
    return list(found.values())


def _model_name(folder: Path, manifest: Mapping[str, Any]) -> str:
    folder = folder.resolve()
    return folder.parent.name if folder.name == manifest.get("benchmark") else folder.name


def _joined(one: Run, other: Run) -> Run:
    """One run with the samples of both. Raises UserError for other items."""
    if [_of_item(item) for item in one.answers.items] != [
        _of_item(item) for item in other.answers.items
    ]:
        raise UserError(
            f"{one.folders[0]} and {other.folders[0]} are runs of '{one.model}' about different "
            "items; name them with --names if they are of different models"
        )
    answers = one.answers.with_samples_of(other.answers)
    return replace(one, folders=[*one.folders, *other.folders], answers=answers)


def _of_item(item: Any) -> tuple[Any, ...]:
    return item.name, item.key, item.better, item.group


def compare(runs: Sequence[Run], common: bool = False) -> dict[str, Any]:
    """Benchmark -> scores of each model, and the difference of each two models.

    `common`: only items that all models have texts about; otherwise items that one model lacks are
    an error. p-values are those of McNemar's exact test on the votes (right or not), corrected for
    all comparisons of the result (Holm 1979). Raises UserError for runs that cannot be compared.
    """
    by_benchmark: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        by_benchmark[run.benchmark].append(run)
    found: dict[str, Any] = {}
    for benchmark, of_benchmark in by_benchmark.items():
        aligned, left_out = _aligned(of_benchmark, common)
        official = BENCHMARKS.get(of_benchmark[0].manifest.get("benchmark", ""))
        found[benchmark] = {
            "left_out": left_out,
            "models": {run.model: strict_score(run.answers) for run in aligned},
            "official": {
                run.model: asdict(official.official(run.answers))
                for run in aligned
                if official and official.official
            },
            "differences": _differences(aligned),
        }
    _correct([entry for one in found.values() for entry in one["differences"]])
    return found


def aligned_runs(runs: Sequence[Run]) -> list[Run]:
    """The runs with the items that all have texts about, in one order. Raises UserError."""
    return _aligned(runs, common=True)[0]


def _aligned(runs: Sequence[Run], common: bool) -> tuple[list[Run], int]:
    """The runs with the same items in the same order, and how many items were left out."""
    texts = []
    for run in runs:
        answers = run.answers
        has_text = ~answers.missing.all(axis=(1, 2))
        texts.append({
            item.name: number
            for number, item in enumerate(answers.items) if has_text[number]
        })  # fmt: skip
    every = {item.name for run in runs for item in run.answers.items}
    shared = set.intersection(*map(set, texts))
    if len(shared) < len(every) and not common:
        lacks = {run.model: len(every) - len(own) for run, own in zip(runs, texts, strict=True)}
        told = ", ".join(f"{model} {count:,}" for model, count in lacks.items() if count)
        raise UserError(
            f"{runs[0].benchmark}: of {len(every):,} items there is no text of {told}; ask again "
            "(--retry-failed), or compare what all have (--common)"
        )
    if not shared:
        raise UserError(f"{runs[0].benchmark}: the runs have no item in common")
    names = [item.name for item in runs[0].answers.items if item.name in shared]
    aligned = []
    for run, numbers in zip(runs, texts, strict=True):
        taken = run.answers.take(np.array([numbers[name] for name in names]))
        aligned.append(replace(run, answers=taken))
    first = aligned[0]
    for other in aligned[1:]:
        contents = [run.manifest.get("content") for run in (first, other)]
        if all(contents) and contents[0] != contents[1] and not common:
            raise UserError(
                f"{first.folders[0]} and {other.folders[0]}: the media or rows of "
                f"{first.benchmark} were not the same; evaluate both on one snapshot, or compare "
                "what they share (--common)"
            )
        for one, two in zip(first.answers.items, other.answers.items, strict=True):
            if _of_item(one) != _of_item(two):
                raise UserError(
                    f"{first.folders[0]} and {other.folders[0]}: item {one.name} is not the same "
                    "comparison in both, or has another label; are these versions of one benchmark?"
                )
    return aligned, len(every) - len(names)


def _differences(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The difference of each two models, the later less the earlier one, by group and overall."""
    if len(runs) < 2:
        return []
    items = runs[0].answers.items
    clusters = Clusters([item.cluster for item in items])
    masks = {**group_masks(runs[0].answers), OVERALL: np.ones(len(items), dtype=bool)}
    accuracy = {run.model: item_values(run.answers)["accuracy"] for run in runs}
    # An item's vote is right or not: an undecided one is not.
    right = {run.model: votes_at(run.answers, run.answers.samples)[:, 0] > 0.5 for run in runs}
    counts = ~runs[0].answers.is_tie
    found = []
    for before, after in combinations(runs, 2):
        delta = accuracy[after.model] - accuracy[before.model]
        table = np.column_stack([np.where(mask, delta, np.nan) for mask in masks.values()])
        draws = clusters.means(table)
        groups = {}
        for number, name in enumerate(masks):
            low, high = interval(draws[:, number])
            there = draws[~np.isnan(draws[:, number]), number]
            error = float(there.std()) if len(there) else float("nan")
            groups[name] = {
                "difference": mean(table[:, number]), "low": low, "high": high,
                "detectable": _DETECTABLE_ERRORS * error,
            }  # fmt: skip
        gained = int((right[after.model] & ~right[before.model] & counts).sum())
        lost = int((right[before.model] & ~right[after.model] & counts).sum())
        found.append({
            "before": before.model, "after": after.model, "groups": groups,
            "gained": gained, "lost": lost, "p": _mcnemar(gained, lost),
        })  # fmt: skip
    return found


def _mcnemar(gained: int, lost: int) -> float:
    from statsmodels.stats.contingency_tables import mcnemar

    return float(mcnemar([[0, gained], [lost, 0]], exact=True).pvalue)


def _correct(differences: Sequence[dict[str, Any]]) -> None:
    """Add `p_holm` to each difference: the p-value corrected for all of them."""
    from statsmodels.stats.multitest import multipletests

    if differences:
        corrected = multipletests([entry["p"] for entry in differences], method="holm")[1]
        for entry, p in zip(differences, corrected, strict=True):
            entry["p_holm"] = float(p)
