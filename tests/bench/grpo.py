"""GRPO beside stage 3, on the models, comparisons and judge of the finished demo.

    make demo SEEDS="0 1 2"
    .envs/main/bin/python tests/bench/grpo.py --seeds 0 1 2 [--until time] [--jobs 2]

For every seed GRPO starts at stage 2's model, with the settings of configs/demo/grpo.yaml. It ends
where stage 3 did: when it has taken as long (second pass, pairs and training), or when it has
written as many texts as the second pass. Its model answers the held-out comparisons as the demo's
models did. Prints a table beside stage 2 and stage 3. What has been run is only printed.

Run as many seeds at once as the demo's chains were, for equal times.
"""

import argparse
import json
import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from cot_reward.evaluation.collect import accuracy_by_comparison
from cot_reward.evaluation.finished import judged_rows
from cot_reward.stats import paired_difference
from recipes import DEMO, REPO, pooled

OUT = REPO / "runs/grpo"
CONFIG = "configs/demo/grpo.yaml"
WAYS = {"time": "equal wall time", "texts": "equal texts"}


def summary(seed: int, step: str) -> dict[str, Any]:
    told: dict[str, Any] = json.loads((DEMO / f"seed{seed}/{step}/summary.json").read_text())
    return told


def wall_seconds(seed: int) -> float:
    """What the demo's way from stage 2 to stage 3 took."""
    return float(
        sum(summary(seed, step)["seconds"] for step in ("stage2_infer", "pairs", "stage3"))
    )


def run(seed: int, way: str) -> None:
    """Train one seed, and have its model answer the held-out comparisons."""
    run = OUT / way / f"seed{seed}"
    run.mkdir(parents=True, exist_ok=True)
    for link, target in {
        run / "stage2": DEMO / f"seed{seed}/stage2",
        run / "pairs": DEMO / f"seed{seed}/pairs",
        run.parent / "template.txt": DEMO / "template.txt",
    }.items():
        if not link.is_symlink():
            link.symlink_to(target)
    bound = ["--max_minutes", f"{wall_seconds(seed) / 60:.2f}"]
    if way == "texts":
        at_once = yaml.safe_load((REPO / CONFIG).read_text())["per_device_train_batch_size"]
        texts = summary(seed, "stage2_infer")["account"]["judged"]
        bound = ["--max_steps", math.ceil(texts / at_once)]
    with (run / "log.txt").open("a") as log:

        def call(*command: Any) -> None:
            words = [str(word) for word in command]
            subprocess.run(words, cwd=REPO, check=True, stdout=log, stderr=log)

        chain = [
            "scripts/chain.sh", "--profile", "configs/demo", "--seeds", seed,
            "--runs", run.parent.relative_to(REPO), "--base", DEMO.relative_to(REPO) / "base",
        ]  # fmt: skip
        if not (run / "stage3/summary.json").exists():
            call(
                ".envs/main/bin/accelerate", "launch", "-q", "--config_file",
                "configs/demo/accelerate.yaml", "--num_cpu_threads_per_process", 1,
                "scripts/GRPO_VL.py", "--config", CONFIG, "--seed", seed, *bound,
                "--model_name_or_path", run / "stage2", "--output_dir", run / "stage3",
                "--template", DEMO / "template.txt", "--overwrite_output_dir", "true",
            )  # fmt: skip
            call(*chain, "--only", "stage3", "--adopt")
        call(*chain, "--only", "eval_stage3")
    print(f"{WAYS[way]}, seed {seed}: done", file=sys.stderr, flush=True)


def answers(runs: Path, stage: str, seeds: list[int]) -> list[dict[str, Any]]:
    """The judged texts about the held-out comparisons, at T=1."""
    return [
        row | {"seed": seed}
        for seed in seeds
        for row in judged_rows(runs / f"seed{seed}/eval_{stage}/sampled")
    ]


def line(name: str, runs: Path, stage: str, seeds: list[int], took: str) -> str:
    """A row of the table."""
    rows = answers(runs, stage, seeds)
    after = accuracy_by_comparison(rows)
    cells = [name, f"{100 * pooled(rows)['accuracy']['share']:.1f}"]
    for other in ("stage2", "stage3"):
        before = accuracy_by_comparison(answers(DEMO, other, seeds))
        keys = sorted(before.keys() & after.keys())
        found = paired_difference([after[key] for key in keys], [before[key] for key in keys])
        of_points = {key: 100 * value for key, value in found.items()}
        cells.append("{difference:+.1f} [{low:+.1f}, {high:+.1f}]".format(**of_points))
    metrics = pooled(rows)
    figures = ("well_formed", "coherent", "answers_1", "survives_swap")
    cells += [f"{100 * metrics[figure]['share']:.1f}" for figure in figures]
    return "| " + " | ".join([*cells, took]) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--until", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--jobs", type=int, default=2, help="runs at once")
    chosen = parser.parse_args()
    seeds = chosen.seeds
    jobs = [(seed, way) for way in chosen.until for seed in seeds]
    with ThreadPoolExecutor(chosen.jobs) as pool:
        list(pool.map(lambda job: run(*job), jobs))
    print("| model | T=1 | less stage 2 | less stage 3 | well-formed | coherent | answers 1 "
          "| survives a swap | took, by seed |\n|" + "---|" * 9)  # fmt: skip
    walls = " / ".join(f"{wall_seconds(seed):.0f} s" for seed in seeds)
    print(line("stage 2", DEMO, "stage2", seeds, ""))
    print(line("stage 3: DPO", DEMO, "stage3", seeds, walls))
    for way in chosen.until:
        took = []
        for seed in seeds:
            told = json.loads((OUT / way / f"seed{seed}/stage3/summary.json").read_text())
            took.append(f"{told['steps']} steps, {told['texts']} texts, {told['seconds']:.0f} s")
        print(line(f"GRPO, {WAYS[way]}", OUT / way, "stage3", seeds, " / ".join(took)))


if __name__ == "__main__":
    main()
