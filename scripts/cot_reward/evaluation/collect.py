"""Held-out results by stage: reads the judged rows of finished runs and compares the stages.

The runs lie in the folders that scripts/chain.sh writes: RUNS/eval_base and RUNS/seedN/eval_STAGE,
each with a folder for every decoding mode. A later round of DPO is in RUNS/seedN/roundK.
"""

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from cot_reward.errors import UserError
from cot_reward.evaluation.by_source import accuracy_by_source, differences_by_source
from cot_reward.evaluation.finished import judged_rows
from cot_reward.evaluation.rounds import WATCH_FILE, evaluated_rounds, round_folder
from cot_reward.rows.reading import read_rows
from cot_reward.stats import bootstrap_mean, paired_difference, tally
from cot_reward.store import read_json

# Name -> title, in the order of the chain. The controls start at stage 2's model, as stage 3 does:
# plain SFT on stage 3's chosen texts, and stage 2 once more, on all right texts of the second pass.
STAGES = {
    "base": "base",
    "stage1": "stage 1: cold start",
    "stage2": "stage 2: rejection sampling",
    "control": "control: SFT on the chosen",
    "control_rejection": "control: one more rejection round",
    "stage3": "stage 3: DPO",
}
# Begins the name of a model that a chain compares and has not trained (eval_NAME is its folder).
COMPARED = "compared_"
# Stages that a chain may leave out.
CONTROLS = ("control", "control_rejection")
# (after, before): each is a claim that the chain could make.
DIFFERENCES = (
    ("stage1", "base"),
    ("stage2", "stage1"),
    ("stage3", "stage2"),
    ("control", "stage2"),
    ("stage3", "control"),
    ("control_rejection", "stage2"),
    ("stage3", "control_rejection"),
)
# Name of the folder and of the key -> title.
MODES = {"greedy": "greedy", "sampled": "T=1"}

# Of the merger's summary.
PAIR_METRICS = (
    "pairs", "comparisons", "chosen_answer", "pair_kinds", "rejected_from_first_pass",
    "shortcut", "shortcut_by_kind",
)  # fmt: skip

# Share of comparisons that may have failed for one of two models that are compared.
MAX_UNSHARED = 0.05

# Seed -> comparison -> whether each response was correct, by stage and mode.
Hits = dict[tuple[str, str], dict[str, dict[str, list[bool]]]]


class Model(NamedTuple):
    """A row of the table. answers: seed -> folder of its inferences; training: of its first seed"""

    stage: str
    title: str
    answers: dict[str, Path]
    training: Path | None


def accuracy_by_comparison(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Share of correct responses for each comparison, over its orders, samples and runs.

    Comparisons are the independent units: responses about the same one are not independent.
    """
    return _shares([_hits(rows)])


def _hits(rows: Iterable[Mapping[str, Any]]) -> dict[str, list[bool]]:
    """Comparison -> whether each response about it is correct."""
    hits: dict[str, list[bool]] = defaultdict(list)
    for row in rows:
        hits[row["id"]].append(row["verdict"] == "correct")
    return hits


def _shares(of_runs: Iterable[Mapping[str, list[bool]]]) -> dict[str, float]:
    """Comparison -> share of correct responses, pooled over runs."""
    pooled: dict[str, list[bool]] = defaultdict(list)
    for hits in of_runs:
        for key, found in hits.items():
            pooled[key] += found
    return {key: sum(found) / len(found) for key, found in pooled.items()}


def training_pace(folder: Path) -> dict[str, Any]:
    """Optimiser steps and seconds per step from trainer_state.json; empty without that file."""
    path = folder / "trainer_state.json"
    if not path.exists():
        return {}
    state = json.loads(path.read_text(encoding="utf-8"))
    seconds = next(
        (
            entry["train_runtime"]
            for entry in reversed(state["log_history"])
            if "train_runtime" in entry
        ),
        0.0,
    )
    steps = state["global_step"]
    return {"steps": steps, "seconds_per_step": seconds / steps if steps else 0.0}


def run_folders(runs: Path, seeds: Sequence[int]) -> dict[str, Path]:
    """Seed -> folder of its run; without seeds the one run is in `runs` itself, and named ""."""
    return {str(seed): runs / f"seed{seed}" for seed in seeds} or {"": runs}


def seeds_in_words(seeds: Collection[int | str]) -> str:
    """'seed 0', or 'seeds 0, 1'."""
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def collect(runs: Path, seeds: Sequence[int]) -> dict[str, Any]:
    """The contents of results.json: a record for each stage, and the differences between stages.

    A chain without a control has no record of this control, and a later round of DPO those seeds
    that needed it. Raises UserError when a run is missing or has not finished, and when two stages
    that are compared answered different comparisons.
    """
    folders = run_folders(runs, seeds)
    hits: Hits = {}
    sources: dict[str, str] = {}
    records = [_record(model, hits, sources) for model in _models(runs, folders)]
    rounds = _round_folders(folders)
    steps = runs / "steps.jsonl"
    return {
        "seeds": list(seeds),
        "stages": records,
        "differences": _differences(hits),
        **_differences_by_source(hits, sources),
        "pairs": {name: _pairs(folder) for name, folder in rounds.items()},
        "watch": {name: read_json(folder / WATCH_FILE) for name, folder in rounds.items()},
        "step_seconds": [row for _, row in read_rows(steps)] if steps.exists() else [],
    }


def _models(runs: Path, folders: Mapping[str, Path]) -> Iterator[Model]:
    """Every model that has been evaluated, in the order of the table."""
    first_seed, first = next(iter(folders.items()))
    yield Model("base", STAGES["base"], {first_seed: runs / "eval_base"}, None)
    for stage, title in STAGES.items():
        answers = {seed: run / f"eval_{stage}" for seed, run in folders.items()}
        is_there = stage not in CONTROLS or any(folder.exists() for folder in answers.values())
        if stage != "base" and is_there:
            yield Model(stage, title, answers, first / stage)
    rounds = {seed: evaluated_rounds(run) for seed, run in folders.items()}
    for number in range(2, max(map(max, rounds.values())) + 1):
        having = {
            seed: round_folder(run, number)
            for seed, run in folders.items()
            if number in rounds[seed]
        }
        of_seeds = f" ({seeds_in_words(having)})" if len(having) < len(folders) else ""
        yield Model(
            f"round{number}", f"stage 3, round {number}: DPO{of_seeds}",
            {seed: folder / "eval_stage3" for seed, folder in having.items()},
            next(iter(having.values())) / "stage3",
        )  # fmt: skip


def _round_folders(folders: Mapping[str, Path]) -> dict[str, Path]:
    """Name -> folder of every round of DPO: SEED, or SEED/roundN for a later one."""
    return {
        f"{seed}/round{number}".strip("/") if number > 1 else seed: round_folder(run, number)
        for seed, run in folders.items()
        for number in evaluated_rounds(run)
    }


def _pairs(folder: Path) -> dict[str, Any]:
    """What the pairs of a run are: their number, kinds, positions and shortcut accuracies."""
    path = folder / "pairs/summary.json"
    if not path.exists():
        return {}
    summary = json.loads(path.read_text(encoding="utf-8"))
    return {name: summary[name] for name in PAIR_METRICS if name in summary}


def _record(model: Model, hits: Hits, sources: dict[str, str]) -> dict[str, Any]:
    """The metrics of a model in each mode, pooled over its seeds.

    Adds to `hits`, and to `sources`: comparison -> its data set.
    """
    record: dict[str, Any] = {"stage": model.stage, "title": model.title}
    record["seeds"] = [int(seed) for seed in model.answers if seed]
    for mode in MODES:
        by_seed = {seed: judged_rows(folder / mode) for seed, folder in model.answers.items()}
        # Seeds share comparison ids. With the seed in the id, orders pair within a seed.
        record[mode] = tally(
            row | {"id": f"{seed}/{row['id']}"} for seed, rows in by_seed.items() for row in rows
        )
        hits[model.stage, mode] = {seed: _hits(rows) for seed, rows in by_seed.items()}
        # The Wilson interval takes responses as independent; this one resamples comparisons.
        accuracy = _shares(hits[model.stage, mode].values())
        low, high = bootstrap_mean(list(accuracy.values()))
        record[mode]["accuracy"] |= {"bootstrap_low": low, "bootstrap_high": high}
        record[mode]["accuracy_by_seed"] = {
            seed: tally(rows)["accuracy"]["share"] for seed, rows in by_seed.items()
        }
        pooled = [row for rows in by_seed.values() for row in rows]
        sources |= {row["id"]: row["source"] for row in pooled}
        if by_source := accuracy_by_source(pooled, accuracy):
            record[mode]["accuracy_by_source"] = by_source
    if model.training:
        record["training"] = training_pace(model.training)
    return record


def _differences_by_source(hits: Hits, sources: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Stage 3 less stage 2 by mode and source; empty where the held-out data have one source."""
    found = {}
    for mode in MODES:
        after, before = (_shares(hits[stage, mode].values()) for stage in ("stage3", "stage2"))
        found[mode] = differences_by_source(after, before, sources)
    return {"differences_by_source": found} if any(found.values()) else {}


def _compared(evaluated: Sequence[str]) -> list[tuple[str, str]]:
    """(after, before) of every difference between stages that have been evaluated."""
    later = [stage for stage in evaluated if stage not in STAGES]
    of_rounds = [
        (stage, before)
        for previous, stage in pairwise(["stage3", *later])
        for before in (previous, "stage2", *CONTROLS)
    ]
    return [pair for pair in (*DIFFERENCES, *of_rounds) if set(pair) <= set(evaluated)]


def _differences(hits: Hits) -> list[dict[str, Any]]:
    """Mean differences in accuracy over the comparisons, for each two stages and each mode.

    A comparison that has no response of one of the two models is left out. Both are pooled over the
    seeds of the later one: not every seed may have needed a later round of DPO.
    """
    differences = []
    for after, before in _compared(list(dict.fromkeys(stage for stage, _ in hits))):
        for mode in MODES:
            by_seed, by_seed_before = hits[after, mode], hits[before, mode]
            first = _shares(by_seed.values())
            # The base is there once, whatever the seeds.
            second = _shares(by_seed_before[seed] for seed in by_seed if seed in by_seed_before)
            keys = sorted(first.keys() & second.keys())
            asked = len(first.keys() | second.keys())
            if len(keys) < (1 - MAX_UNSHARED) * asked or not keys:
                raise UserError(
                    f"{after} and {before} were not evaluated on the same comparisons: they share "
                    f"{len(keys):,} of {asked:,}"
                )
            difference = paired_difference(
                [first[key] for key in keys], [second[key] for key in keys]
            )
            seeds = [int(seed) for seed in by_seed if seed]
            entry = {"after": after, "before": before, "mode": mode, "seeds": seeds}
            differences.append(entry | difference)
    return differences
