"""Stage 3 in other ways: pairs, losses and learning rates compared on the demo's validation data.

    make demo SEEDS="0 1 2"
    .envs/main/bin/python tests/bench/recipes.py --seeds 0 1 2 [--recipes demo "lr 5e-5"] [--jobs 2]

For every recipe and seed this makes the pairs, trains stage 3, and answers the validation
comparisons at T=1; all before (models of stages 1 and 2, their texts) is the finished demo's. A
recipe says what differs from the demo's YAMLs. Prints a table: accuracy, its difference from stage
2 pooled over the seeds and by seed (paired bootstrap over comparisons), and what else may suffer. A
recipe that has been run is only printed.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from cot_reward.evaluation.collect import accuracy_by_comparison, judged_rows
from cot_reward.judge import FINDINGS
from cot_reward.stats import paired_difference, tally

REPO = Path(__file__).resolve().parents[2]
DEMO = REPO / "runs/demo"
OUT = REPO / "runs/recipes"
# What the steps of a recipe read, and the demo has made.
MADE = ("stage1_infer", "stage2", "stage2_infer", "stage2_infer_hot")


@dataclass(frozen=True)
class Recipe:
    """What differs from configs/demo/merge.yaml and configs/demo/dpo.yaml."""

    merge: Mapping[str, Any] = field(default_factory=dict)
    stage3: Mapping[str, Any] = field(default_factory=dict)


RECIPES = {
    "demo": Recipe(),
    "all tokens": Recipe(stage3={"preference_tokens": "all"}),
    "all tokens, coherent": Recipe(
        merge={"rejected_coherence": ["coherent"]}, stage3={"preference_tokens": "all"}
    ),
    "first difference": Recipe(stage3={"preference_tokens": "first_difference"}),
    "first difference, beta 1": Recipe(
        stage3={"preference_tokens": "first_difference", "beta": 1.0}
    ),
    "uncertain": Recipe(stage3={"preference_tokens": "uncertain"}),
    "uncertain, beta 1": Recipe(stage3={"preference_tokens": "uncertain", "beta": 1.0}),
    "uncertain, beta 1, SFT weight 5": Recipe(
        stage3={"preference_tokens": "uncertain", "beta": 1.0, "loss_weights": [1.0, 5.0]}
    ),
    "uncertain, beta 1, groups, all pairs": Recipe(
        merge={"select": "all", "pairs_per_comparison": 1},
        stage3={"preference_tokens": "uncertain", "beta": 1.0, "weigh": "comparison"}
        | {"groups": True, "per_device_train_batch_size": 10},
    ),
    "SFT on the chosen, lr 3e-4": Recipe(
        stage3={"loss_type": ["sft"], "loss_weights": None, "preference_tokens": "all"}
        | {"learning_rate": 3e-4}
    ),
    "coherent": Recipe(merge={"rejected_coherence": ["coherent"]}),
    "SFT on the chosen": Recipe(
        stage3={"loss_type": ["sft"], "loss_weights": None, "preference_tokens": "all"}
    ),
    "lr 3e-5": Recipe(stage3={"learning_rate": 3e-5}),
    "lr 5e-5": Recipe(stage3={"learning_rate": 5e-5}),
    "lr 2e-4": Recipe(stage3={"learning_rate": 2e-4}),
    "beta 0.1": Recipe(stage3={"beta": 0.1}),
    "beta 1": Recipe(stage3={"beta": 1.0}),
    "SFT weight 5": Recipe(stage3={"loss_weights": [1.0, 5.0]}),
    "SFT weight 50": Recipe(stage3={"loss_weights": [1.0, 50.0]}),
    "no SFT": Recipe(stage3={"loss_type": ["sigmoid"], "loss_weights": None}),
    "normalised": Recipe(
        stage3={"loss_type": ["sigmoid_norm", "sft"], "loss_weights": [1.0, 0.1], "beta": 10.0}
        | {"preference_tokens": "all"}
    ),
    "IPO": Recipe(stage3={"loss_type": ["ipo", "sft"], "preference_tokens": "all"}),
    "one model": Recipe(merge={"pair_from": "same-model"}),
    "published": Recipe(merge={"pair_from": "published"}),
    "random": Recipe(merge={"select": "random"}),
    # A group has some three pairs.
    "groups": Recipe(stage3={"groups": True, "per_device_train_batch_size": 10}),
    "groups, by comparison": Recipe(
        stage3={"groups": True, "per_device_train_batch_size": 10, "weigh": "comparison"}
    ),
    "groups, all pairs": Recipe(
        merge={"select": "all", "pairs_per_comparison": 1},
        stage3={"groups": True, "per_device_train_batch_size": 10, "weigh": "comparison"},
    ),
    "hardest": Recipe(merge={"select": "hardest"}),
    "2 a comparison": Recipe(merge={"pairs_per_comparison": 2}),
    "rejected with any finding": Recipe(merge={"rejected_coherence": list(FINDINGS)}),
    "incoherent, too": Recipe(merge={"rejected_kinds": ["incorrect", "incoherent"]}),
    "positions as they come": Recipe(merge={"balance_positions": False}),
}


def folder_of(name: str) -> Path:
    return OUT / "".join(letter if letter.isalnum() else "_" for letter in name)


def prepare(name: str, seed: int) -> None:
    """The folder of a recipe, in which all that precedes the pairs is the demo's."""
    runs, recipe = folder_of(name), RECIPES[name]
    run = runs / f"seed{seed}"
    run.mkdir(parents=True, exist_ok=True)
    links = {run / made: DEMO / f"seed{seed}" / made for made in MADE}
    links[runs / "template.txt"] = DEMO / "template.txt"
    for link, target in links.items():
        if target.exists() and not link.is_symlink():
            link.symlink_to(target)
    for config, changes in (("merge", recipe.merge), ("dpo", recipe.stage3)):
        settings = yaml.safe_load((REPO / f"configs/demo/{config}.yaml").read_text()) | changes
        (runs / f"{config}.yaml").write_text(yaml.safe_dump(settings))


def run(name: str, seed: int) -> None:
    """The steps of a recipe that are not done, for one seed; their output is in its log."""
    runs = folder_of(name)
    wanted = [part for step in ("pairs", "stage3", "validate_stage3") for part in ("--only", step)]
    with (runs / f"seed{seed}.log").open("a") as log:
        subprocess.run(
            [
                "scripts/chain.sh", "--profile", "configs/demo", "--seeds", str(seed),
                "--runs", runs.relative_to(REPO), "--base", DEMO.relative_to(REPO) / "base",
                "--merge", (runs / "merge.yaml").relative_to(REPO),
                "--stage3", (runs / "dpo.yaml").relative_to(REPO), *wanted,
            ],
            cwd=REPO, check=True, stdout=log, stderr=log,
        )  # fmt: skip
    print(f"{name}, seed {seed}: done", file=sys.stderr, flush=True)


def answers(runs: Path, stage: str, seeds: list[int]) -> list[dict[str, Any]]:
    """The judged validation texts of these seeds."""
    folders = [runs / f"seed{seed}/validate_{stage}" for seed in seeds]
    return [
        row | {"seed": s}
        for s, folder in zip(seeds, folders, strict=True)
        for row in judged_rows(folder)
    ]


def pooled(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The metrics of all seeds together; orders pair within a seed."""
    return tally(row | {"id": f"{row['seed']}/{row['id']}"} for row in rows)


def line(name: str, seeds: list[int]) -> str:
    """A row of the table."""
    runs = folder_of(name)
    rows = answers(runs, "stage3", seeds)
    before, after = map(accuracy_by_comparison, (answers(DEMO, "stage2", seeds), rows))
    keys = sorted(before.keys() & after.keys())
    difference = paired_difference([after[key] for key in keys], [before[key] for key in keys])
    by_seed = []
    for seed in seeds:
        start, end = (
            accuracy_by_comparison(answers(folder, stage, [seed])).values()
            for folder, stage in ((DEMO, "stage2"), (runs, "stage3"))
        )
        by_seed.append(f"{100 * (fmean(end) - fmean(start)):+.1f}")
    sizes = [size(runs / f"seed{seed}") for seed in seeds]
    metrics = pooled(rows)
    cells = [
        name,
        " / ".join(sizes),
        f"{100 * metrics['accuracy']['share']:.1f}",
        "{difference:+.1f} [{low:+.1f}, {high:+.1f}]".format(
            **{key: 100 * value for key, value in difference.items()}
        ),
        " / ".join(by_seed),
        *(f"{100 * metrics[figure]['share']:.1f}" for figure in (
            "well_formed", "coherent", "answers_1", "survives_swap"
        )),
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def size(run: Path) -> str:
    """Pairs and optimiser steps of a run."""
    steps = json.loads((run / "stage3/trainer_state.json").read_text())["global_step"]
    return f"{json.loads((run / 'pairs/summary.json').read_text())['pairs']}, {steps}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--jobs", type=int, default=2, help="runs at once, one core each")
    chosen = parser.parse_args()
    jobs = [(name, seed) for name in chosen.recipes for seed in chosen.seeds]
    for job in jobs:
        prepare(*job)
    with ThreadPoolExecutor(chosen.jobs) as pool:
        list(pool.map(lambda job: run(*job), jobs))
    start = pooled(answers(DEMO, "stage2", chosen.seeds))
    print(f"stage 2: accuracy {100 * start['accuracy']['share']:.1f}, " + ", ".join(
        f"{name} {100 * start[name]['share']:.1f}"
        for name in ("well_formed", "coherent", "answers_1", "survives_swap")
    ))  # fmt: skip
    print(
        "| recipe | pairs, steps | T=1 | less stage 2 | by seed "
        "| well-formed | coherent | answers 1 | survives a swap |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for name in chosen.recipes:
        print(line(name, chosen.seeds))


if __name__ == "__main__":
    main()
