"""scripts/compare.py on models x items x samples, from files: seconds and peak memory.

    .envs/main/bin/python tests/bench/comparison.py [--models 4] [--items 5000] [--samples 8]

Prints Markdown. The rows have texts of 1,500 characters, as chains of thought have.
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import numpy as np
from cot_reward.evaluation.items import Item, write_items
from cot_reward.report.settings import CompareSettings
from cot_reward.store import dump

TEXT = "<think>" + "Image 1 follows the caption, and its light is even. " * 28 + "</think>"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=4)
    parser.add_argument("--items", type=int, default=5_000)
    parser.add_argument("--samples", type=int, default=8)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = [made(Path(folder), model, given.items, given.samples)
                for model in range(given.models)]  # fmt: skip
        size = sum(file.stat().st_size for run in runs for file in run.iterdir())
        start, cpu = time.perf_counter(), time.process_time()
        from cot_reward.report.run import write_comparison

        write_comparison(
            CompareSettings(runs, out=Path(folder) / "out", published=None, page=False)
        )
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        print(
            f"{given.models} models x {given.items:,} items x 2 orders x {given.samples} samples "
            f"({size / 2**20:,.0f} MiB of rows): {seconds:.1f} s, {cpu:.1f} s CPU, peak {peak} MiB"
        )


def made(root: Path, model: int, items: int, samples: int) -> Path:
    """A finished run of a made-up model."""
    folder = root / f"model{model}/bench"
    folder.mkdir(parents=True)
    choice = np.random.default_rng(model)
    write_items(folder / "items.jsonl", (
        Item(f"{n}", f"{n:064}", f"group {n % 3}", f"cluster {n // 2}", 1 + n % 2, 1 + n % 2)
        for n in range(items)
    ))  # fmt: skip
    (folder / "benchmark.json").write_text('{"benchmark": "bench", "split": ""}')
    summary = {"settings": {"num_samples": samples, "model": "m", "until": "off"}}
    (folder / "summary.json").write_text(json.dumps(summary))
    files = {name: (folder / f"{name}.jsonl").open("w") for name in
             ("correct", "incorrect", "unusable")}  # fmt: skip
    for n in range(items):
        for order in ("given", "swapped"):
            for sample in range(samples):
                label = 1 + n % 2 if order == "given" else 2 - n % 2
                is_right = bool(choice.random() < 0.6 + 0.05 * model)
                row = {
                    "conversations": [{"from": "human", "value": "Which one is better? " * 20},
                                      {"from": "gpt", "value": TEXT}],
                    "images": [f"{n}a.png", f"{n}b.png"], "videos": [], "id": f"{n:064}",
                    "task": "image_generation", "source": "s", "order": order, "sample": sample,
                    "label": label, "answer": label if is_right else 3 - label,
                    "verdict": "correct" if is_right else "incorrect", "coherence": "coherent",
                    "finish_reason": "stop", "model": "m", "template_hash": "x", "form": "think",
                }  # fmt: skip
                files["correct" if is_right else "incorrect"].write(dump(row) + "\n")
    for file in files.values():
        file.close()
    return folder


if __name__ == "__main__":
    main()
