"""Held-out results by stage: reads the judged rows of finished runs and compares the stages.

The runs lie in the folders that scripts/demo.sh writes: RUNS/eval_base and RUNS/seedN/eval_STAGE,
each with a folder for every decoding mode.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cot_reward.errors import UserError
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
# In the folder of a run: stage 3 compared with stage 2.
WATCH_FILE = "check_stage3.json"

# Comparison -> share of correct responses, by stage and mode.
Accuracies = dict[tuple[str, str], dict[str, float]]


def judged_rows(folder: Path) -> list[dict[str, Any]]:
    """Every judged row of a finished inference run.

    Raises UserError when it has not finished, and when outcomes decided what was asked.
    """
    if not (folder / "summary.json").exists():
        raise UserError(f"{folder}: no summary.json; this inference has not finished")
    until = read_json(folder / "summary.json").get("settings", {}).get("until", "off")
    if until != "off":
        raise UserError(
            f"{folder}: sampled with --until {until}, so that the texts are no fair sample of the "
            "model's; run this inference again with --until off"
        )
    rows: list[dict[str, Any]] = []
    for name in ("correct", "incorrect", "unusable"):
        path = folder / f"{name}.jsonl"
        if path.stat().st_size:
            rows += [row for _, row in read_rows(path) if isinstance(row, dict)]
    return rows


def accuracy_by_comparison(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Share of correct responses for each comparison, over its orders, samples and runs.

    Comparisons are the independent units: responses about the same one are not independent.
    """
    correct: dict[str, list[bool]] = defaultdict(list)
    for row in rows:
        correct[row["id"]].append(row["verdict"] == "correct")
    return {key: sum(hits) / len(hits) for key, hits in correct.items()}


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


def collect(runs: Path, seeds: Sequence[int]) -> dict[str, Any]:
    """The contents of results.json: a record for each stage, and the differences between stages.

    A chain without a control has no record of this control. Raises UserError when a run is missing
    or has not finished, and when two stages that are compared answered different comparisons.
    """
    folders = run_folders(runs, seeds)
    accuracies: Accuracies = {}
    records = [
        _stage_record(runs, folders, stage, accuracies)
        for stage in STAGES
        if stage not in CONTROLS
        or any((folder / f"eval_{stage}").exists() for folder in folders.values())
    ]
    steps = runs / "steps.jsonl"
    return {
        "seeds": list(seeds),
        "stages": records,
        "differences": _differences(accuracies),
        "pairs": {name: _pairs(folder) for name, folder in folders.items()},
        "watch": {name: _watched(folder) for name, folder in folders.items()},
        "step_seconds": [row for _, row in read_rows(steps)] if steps.exists() else [],
    }


def _pairs(folder: Path) -> dict[str, Any]:
    """What the pairs of a run are: their number, kinds, positions and shortcut accuracies."""
    path = folder / "pairs/summary.json"
    if not path.exists():
        return {}
    summary = json.loads(path.read_text(encoding="utf-8"))
    return {name: summary[name] for name in PAIR_METRICS if name in summary}


def _watched(folder: Path) -> dict[str, Any]:
    """What `scripts/check_model.py` found about stage 3 of a run; empty where it was not asked."""
    path = folder / WATCH_FILE
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def _stage_record(
    runs: Path, run_of_seed: Mapping[str, Path], stage: str, accuracies: Accuracies
) -> dict[str, Any]:
    """The metrics of a stage in each mode, pooled over the seeds; adds to `accuracies`."""
    seeds = list(run_of_seed)
    if stage == "base":  # one model, whatever the seeds
        folders = {seeds[0]: runs / "eval_base"}
    else:
        folders = {seed: run / f"eval_{stage}" for seed, run in run_of_seed.items()}
    record: dict[str, Any] = {"stage": stage, "title": STAGES[stage]}
    record["seeds"] = [int(seed) for seed in folders if seed]
    for mode in MODES:
        by_seed = {seed: judged_rows(folder / mode) for seed, folder in folders.items()}
        # Seeds share comparison ids. With the seed in the id, orders pair within a seed.
        record[mode] = tally(
            row | {"id": f"{seed}/{row['id']}"} for seed, rows in by_seed.items() for row in rows
        )
        accuracy = accuracy_by_comparison(row for rows in by_seed.values() for row in rows)
        accuracies[stage, mode] = accuracy
        # The Wilson interval takes responses as independent; this one resamples comparisons.
        low, high = bootstrap_mean(list(accuracy.values()))
        record[mode]["accuracy"] |= {"bootstrap_low": low, "bootstrap_high": high}
        record[mode]["accuracy_by_seed"] = {
            seed: tally(rows)["accuracy"]["share"] for seed, rows in by_seed.items()
        }
    if stage != "base":
        record["training"] = training_pace(run_of_seed[seeds[0]] / stage)
    return record


def _differences(accuracies: Accuracies) -> list[dict[str, Any]]:
    """Mean differences in accuracy over the comparisons, for each of DIFFERENCES and each mode.

    A comparison that has no response of one of the two models is left out.
    """
    differences = []
    evaluated = {stage for stage, _ in accuracies}
    for after, before in DIFFERENCES:
        if not {after, before} <= evaluated:
            continue
        for mode in MODES:
            first, second = accuracies[after, mode], accuracies[before, mode]
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
            differences.append({"after": after, "before": before, "mode": mode} | difference)
    return differences
