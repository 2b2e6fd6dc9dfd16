"""How many threads should a trainer of the demo's size have? Seconds per step, side by side.

    .envs/main/bin/python tests/bench/threads.py [--rounds 3]

Needs runs/demo/base and dataset/demo (`make demo` writes them). Each round trains 40 steps of stage
1 in every setting, alone and next to one busy process per core; medians and ratios are printed.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import tempfile
from pathlib import Path

REPO = Path(__file__).parents[2]
# name -> environment; "active" is what OpenMP does when nothing is set: waiting threads spin.
SETTINGS = {
    "1 thread": {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"},
    "2 threads, passive": {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"},
    "2 threads, active": {"OMP_NUM_THREADS": "2"},
}
STEPS = 40


def spin() -> None:
    while True:
        pass


def seconds_per_step(environment: dict[str, str]) -> float:
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [
                REPO / ".envs/sft/bin/llamafactory-cli", "train",
                "configs/demo/qwen_cold_start.yaml", f"max_steps={STEPS}",
                f"output_dir={folder}", "report_to=none", "plot_loss=false",
            ],
            cwd=REPO, env=os.environ | {"HF_HUB_OFFLINE": "1"} | environment, check=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        results = json.loads((Path(folder) / "all_results.json").read_text())
    return float(results["train_runtime"]) / STEPS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    for busy in (0, os.cpu_count() or 1):
        spinners = [multiprocessing.Process(target=spin, daemon=True) for _ in range(busy)]
        for spinner in spinners:
            spinner.start()
        seen: dict[str, list[float]] = {name: [] for name in SETTINGS}
        for _ in range(rounds):
            for name, environment in SETTINGS.items():
                seen[name].append(seconds_per_step(environment))
        for spinner in spinners:
            spinner.terminate()
        base = statistics.median(seen["1 thread"])
        for name, values in seen.items():
            median = statistics.median(values)
            print(
                f"{busy} busy processes, {name}: median {median:.3f} s/step "
                f"({min(values):.3f} to {max(values):.3f}), {median / base:.2f} x 1 thread",
                flush=True,
            )


if __name__ == "__main__":
    main()
