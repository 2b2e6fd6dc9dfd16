"""Held-out results stage by stage, collected from judged runs; differences with intervals."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cot_reward.errors import UserError
from cot_reward.rows.reading import read_rows
from cot_reward.stats import bootstrap_mean, paired_difference, tally

# name -> what it is, in the order of the chain; "control" is plain SFT on stage 3's chosen texts.
STAGES = {
    "base": "base",
    "stage1": "stage 1: cold start",
    "stage2": "stage 2: rejection sampling",
    "control": "control: SFT on the chosen",
    "stage3": "stage 3: DPO",
}
# (after, before): each is a claim that the chain could make.
DIFFERENCES = (
    ("stage1", "base"),
    ("stage2", "stage1"),
    ("stage3", "stage2"),
    ("control", "stage2"),
    ("stage3", "control"),
)
MODES = {"greedy": "greedy", "sampled": "T=1"}


def judged_rows(folder: Path) -> list[dict[str, Any]]:
    """Every judged row of a finished inference run."""
    if not (folder / "summary.json").exists():
        raise UserError(f"{folder}: no summary.json; this inference has not finished")
    rows: list[dict[str, Any]] = []
    for name in ("correct", "incorrect", "unusable"):
        path = folder / f"{name}.jsonl"
        if path.stat().st_size:
            rows += [row for _, row in read_rows(path) if isinstance(row, dict)]
    return rows


def by_comparison(runs: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, float]:
    """Mean correctness of each comparison over orders, samples and runs: the independent units."""
    seen: dict[str, list[bool]] = defaultdict(list)
    for rows in runs:
        for row in rows:
            seen[row["id"]].append(row["verdict"] == "correct")
    return {key: sum(right) / len(right) for key, right in seen.items()}


def _folder(runs: Path, seed: int, stage: str) -> Path:
    return runs / "eval_base" if stage == "base" else runs / f"seed{seed}" / f"eval_{stage}"


def _training(folder: Path) -> dict[str, Any]:
    """Optimiser steps and seconds per step, as the trainer recorded them."""
    path = folder / "trainer_state.json"
    if not path.exists():
        return {}
    state = json.loads(path.read_text(encoding="utf-8"))
    seconds = next(
        (e["train_runtime"] for e in reversed(state["log_history"]) if "train_runtime" in e), 0.0
    )
    steps = state["global_step"]
    return {"steps": steps, "seconds_per_step": seconds / steps if steps else 0.0}


def collect(runs: Path, seeds: Sequence[int]) -> dict[str, Any]:
    """Everything the table shows: one record per stage, and the differences between stages."""
    records = []
    units: dict[tuple[str, str], dict[str, float]] = {}
    for stage, title in STAGES.items():
        # The base is one model, whatever the seeds.
        folders = {
            seed: _folder(runs, seed, stage) for seed in (seeds[:1] if stage == "base" else seeds)
        }
        record: dict[str, Any] = {"stage": stage, "title": title, "seeds": list(folders)}
        for mode in MODES:
            per_seed = {seed: judged_rows(folder / mode) for seed, folder in folders.items()}
            # Rows of several seeds share ids: the seed keeps their swap pairs apart.
            pooled = [
                row | {"id": f"{seed}/{row['id']}"}
                for seed, rows in per_seed.items()
                for row in rows
            ]
            record[mode] = tally(pooled)
            units[stage, mode] = by_comparison(list(per_seed.values()))
            low, high = bootstrap_mean(list(units[stage, mode].values()))
            # Samples of one comparison are not independent; this interval resamples comparisons.
            record[mode]["accuracy"] |= {"bootstrap_low": low, "bootstrap_high": high}
            record[mode]["accuracy_by_seed"] = {
                str(seed): tally(rows)["accuracy"]["share"] for seed, rows in per_seed.items()
            }
        if stage != "base":
            record["training"] = _training(runs / f"seed{seeds[0]}" / stage)
        records.append(record)
    differences = []
    for after, before in DIFFERENCES:
        for mode in MODES:
            first, second = units[after, mode], units[before, mode]
            if first.keys() != second.keys():
                raise UserError(f"{after} and {before} were not evaluated on the same comparisons")
            keys = sorted(first)
            difference = paired_difference([first[k] for k in keys], [second[k] for k in keys])
            differences.append({"after": after, "before": before, "mode": mode} | difference)
    steps = runs / "steps.jsonl"
    return {
        "seeds": list(seeds),
        "stages": records,
        "differences": differences,
        "step_seconds": [row for _, row in read_rows(steps)] if steps.exists() else [],
    }
