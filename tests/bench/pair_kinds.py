"""Stage 3 on pairs of one model, on the published method's pairs, and on both kinds.

    make demo SEEDS="0 1 2"
    .envs/main/bin/python tests/bench/pair_kinds.py --seeds 0 1 2

The demo takes both kinds. For every other way this makes the pairs of each finished run of the demo
anew, trains stage 3 on them, and answers the held-out comparisons at T=1. All else (the models of
stages 1 and 2, their responses, settings, seeds) is the demo's. Prints accuracy and its difference
from stage 2, pooled over the seeds (paired bootstrap over comparisons), and the shortcut accuracies
of each kind.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from cot_reward.evaluation.collect import accuracy_by_comparison, judged_rows
from cot_reward.stats import paired_difference

REPO = Path(__file__).resolve().parents[2]
DEMO = REPO / "runs/demo"
OUT = REPO / "runs/pair_kinds"
# Name -> what differs from configs/demo/merge.yaml.
WAYS: dict[str, dict[str, Any]] = {
    "both": {},  # the demo's own way: its results are taken as they are
    "one model": {"pair_from": "same-model"},
    "published": {"pair_from": "published"},
    "both, half each": {"pair_from": "both", "published_share": 0.5},
}
SHARED = ("stage1_infer", "stage2", "stage2_infer", "stage2_infer_hot")


def prepare(way: str, seeds: list[int]) -> tuple[Path, Path]:
    """A folder in which all that precedes the pairs is the demo's, and the merger's settings."""
    runs = OUT / way.replace(", ", "_").replace(" ", "_")
    for seed in seeds:
        (runs / f"seed{seed}").mkdir(parents=True, exist_ok=True)
        for name in SHARED:
            link = runs / f"seed{seed}" / name
            if not link.is_symlink():
                link.symlink_to(DEMO / f"seed{seed}" / name)
    if not (runs / "template.txt").is_symlink():
        (runs / "template.txt").symlink_to(DEMO / "template.txt")
    settings = yaml.safe_load((REPO / "configs/demo/merge.yaml").read_text()) | WAYS[way]
    merge = runs / "merge.yaml"
    merge.write_text(yaml.safe_dump(settings))
    return runs, merge


def train(runs: Path, merge: Path, seeds: list[int]) -> None:
    command = [
        "scripts/chain.sh", "--profile", "configs/demo", "--runs", runs.relative_to(REPO),
        "--merge", merge.relative_to(REPO), "--seeds", *map(str, seeds),
        "--only", "pairs", "stage3", "eval_stage3/sampled",
    ]  # fmt: skip
    subprocess.run(command, cwd=REPO, check=True)


def accuracies(runs: Path, stage: str, seeds: list[int]) -> dict[str, float]:
    """Seed and comparison -> share of right answers at T=1."""
    return {
        f"{seed}/{key}": share
        for seed in seeds
        for key, share in accuracy_by_comparison(
            judged_rows(runs / f"seed{seed}/eval_{stage}/sampled")
        ).items()
    }


def line(way: str, runs: Path, seeds: list[int]) -> str:
    before, after = accuracies(DEMO, "stage2", seeds), accuracies(runs, "stage3", seeds)
    keys = sorted(before)
    difference = paired_difference([after[key] for key in keys], [before[key] for key in keys])
    pairs = [json.loads((runs / f"seed{s}/pairs/summary.json").read_text()) for s in seeds]
    by_seed = []
    for seed in seeds:
        trained, start = accuracies(runs, "stage3", [seed]), accuracies(DEMO, "stage2", [seed])
        by_seed.append(f"{100 * (_mean(trained) - _mean(start)):+.1f}")
    kinds = "; ".join(
        f"{kind} " + ", ".join(_shortcuts(pairs, kind)) for kind in ("same_model", "published")
        if any(kind in summary["shortcut_by_kind"] for summary in pairs)
    )  # fmt: skip
    cells = [
        way,
        " / ".join(str(summary["pair_kinds"]["same_model"]) for summary in pairs),
        " / ".join(str(summary["pair_kinds"]["published"]) for summary in pairs),
        f"{100 * _mean(after):.1f}",
        f"{100 * difference['difference']:+.1f} "
        f"[{100 * difference['low']:+.1f}, {100 * difference['high']:+.1f}]",
        " / ".join(by_seed),
        kinds,
    ]
    return "| " + " | ".join(cells) + " |"


def _mean(shares: dict[str, float]) -> float:
    return sum(shares.values()) / len(shares)


def _shortcuts(pairs: list[dict[str, Any]], kind: str) -> list[str]:
    """The mean over the seeds of each shortcut accuracy of a kind, where it is known."""
    told = []
    for name in ("words", "length", "answer"):
        values = [summary["shortcut_by_kind"].get(kind, {}).get(name) for summary in pairs]
        known = [value for value in values if value is not None]
        told.append(f"{name} {sum(known) / len(known):.2f}" if known else f"{name} -")
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    chosen = parser.parse_args()
    lines = []
    for way in chosen.ways:
        runs = DEMO
        if WAYS[way]:
            runs, merge = prepare(way, chosen.seeds)
            train(runs, merge, chosen.seeds)
        lines.append(line(way, runs, chosen.seeds))
    print(f"stage 2: {100 * _mean(accuracies(DEMO, 'stage2', chosen.seeds)):.1f}")
    print("| pairs | of one model | published | T=1 | less stage 2 | by seed | shortcuts |")
    print("|---|---|---|---|---|---|---|")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
