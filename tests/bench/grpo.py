"""GRPO beside stage 3, on the models, comparisons and judge of the finished demo.

    make demo SEEDS="0 1 2"
    .envs/main/bin/python tests/bench/grpo.py --seeds 0 1 2 [--jobs 2]

For every seed GRPO starts at stage 2's model, with the settings of configs/demo/grpo.yaml, until it
has written as many texts as the demo's second pass. Two of its models answer the held-out
comparisons at T=1, as the demo's models did: the last one (equal texts), and the newest one that
was there when stage 3 was (equal wall time: second pass, pairs and training). Prints a table with
both, beside stage 2 and stage 3, and what they took. What has been run is only printed.
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
from cot_reward.evaluation.collect import accuracy_by_comparison, judged_rows
from cot_reward.stats import paired_difference
from recipes import DEMO, REPO, pooled

OUT = REPO / "runs/grpo"
CONFIG = "configs/demo/grpo.yaml"
WAYS = {"equal wall time": "time", "equal texts": "texts"}
SAVE_STEPS = 5


def summary(seed: int, step: str) -> dict[str, Any]:
    told: dict[str, Any] = json.loads((DEMO / f"seed{seed}/{step}/summary.json").read_text())
    return told


def wall_seconds(seed: int) -> float:
    """What the demo's way from stage 2 to stage 3 took."""
    return float(
        sum(summary(seed, step)["seconds"] for step in ("stage2_infer", "pairs", "stage3"))
    )


def at_wall_time(seed: int) -> tuple[Path, float]:
    """The newest checkpoint that was there when stage 3 was, and the seconds that it took."""
    trained = OUT / f"seed{seed}/trained"
    started = (trained / "run.json").stat().st_mtime
    saved = {
        path: (path / "trainer_state.json").stat().st_mtime - started
        for path in trained.glob("checkpoint-*")
    }
    in_time = {path: took for path, took in saved.items() if took <= wall_seconds(seed)}
    return max((in_time or saved).items(), key=lambda item: item[1])


def run(seed: int) -> None:
    """Train one seed, and have both of its models answer the held-out comparisons."""
    out = OUT / f"seed{seed}"
    out.mkdir(parents=True, exist_ok=True)
    settings = yaml.safe_load((REPO / CONFIG).read_text())
    texts = summary(seed, "stage2_infer")["account"]["judged"]
    steps = math.ceil(texts / settings["per_device_train_batch_size"])
    with (out / "log.txt").open("a") as log:

        def call(*command: Any) -> None:
            words = [str(word) for word in command]
            subprocess.run(words, cwd=REPO, check=True, stdout=log, stderr=log)

        if not (out / "trained/summary.json").exists():
            call(
                ".envs/main/bin/accelerate", "launch", "-q", "--config_file",
                "configs/demo/accelerate.yaml", "--num_cpu_threads_per_process", 1,
                "scripts/GRPO_VL.py", "--config", CONFIG, "--seed", seed, "--max_steps", steps,
                "--model_name_or_path", DEMO / f"seed{seed}/stage2",
                "--output_dir", out / "trained", "--template", DEMO / "template.txt",
                "--save_strategy", "steps", "--save_steps", SAVE_STEPS,
                "--overwrite_output_dir", "true",
            )  # fmt: skip
        for way, model in (("texts", out / "trained"), ("time", at_wall_time(seed)[0])):
            runs = OUT / way / f"seed{seed}"
            runs.mkdir(parents=True, exist_ok=True)
            for link, target in {
                runs / "stage2": DEMO / f"seed{seed}/stage2",
                runs / "pairs": DEMO / f"seed{seed}/pairs",
                runs.parent / "template.txt": DEMO / "template.txt",
                runs / "stage3": model,
            }.items():
                if not link.is_symlink():
                    link.symlink_to(target)
            chain = [
                "scripts/chain.sh", "--profile", "configs/demo", "--seeds", seed,
                "--runs", runs.parent.relative_to(REPO), "--base", DEMO.relative_to(REPO) / "base",
            ]  # fmt: skip
            call(*chain, "--only", "stage3", "--adopt")
            call(*chain, "--only", "eval_stage3")
    print(f"seed {seed}: done", file=sys.stderr, flush=True)


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
    parser.add_argument("--jobs", type=int, default=2, help="runs at once, one core each")
    chosen = parser.parse_args()
    with ThreadPoolExecutor(chosen.jobs) as pool:
        list(pool.map(run, chosen.seeds))
    seeds = chosen.seeds
    print("| model | T=1 | less stage 2 | less stage 3 | well-formed | coherent | answers 1 "
          "| survives a swap | took, by seed |\n|" + "---|" * 9)  # fmt: skip
    walls = " / ".join(f"{wall_seconds(seed):.0f} s" for seed in seeds)
    print(line("stage 2", DEMO, "stage2", seeds, ""))
    print(line("stage 3: DPO", DEMO, "stage3", seeds, walls))
    took = {"time": [], "texts": []}
    for seed in seeds:
        path, seconds = at_wall_time(seed)
        took["time"].append(f"{path.name.removeprefix('checkpoint-')} steps, {seconds:.0f} s")
        told = json.loads((OUT / f"seed{seed}/trained/summary.json").read_text())
        took["texts"].append(f"{told['steps']} steps, {told['seconds']:.0f} s")
    for way, folder in WAYS.items():
        print(line(f"GRPO, {way}", OUT / folder, "stage3", seeds, " / ".join(took[folder])))


if __name__ == "__main__":
    main()
