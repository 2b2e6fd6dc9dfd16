"""What --structured-output costs and changes: the demo's models with and without it.

    .envs/main/bin/python tests/bench/structured.py [--demo .] [--seeds 0 1]
        [--stages stage1 stage3] [--rounds 3] [--limit 200] [--out runs/bench_structured]

Needs `make demo` (runs/demo/seed0/..., dataset/demo) below --demo. Each model is served once. The
first requests are timed; then both settings answer the first --limit held-out comparisons in both
orders, greedily, and --rounds times at T=1 with the same seeds: the setting that begins is drawn.
Other work on the machine makes tokens/s uncertain, so the CPU time of the server's processes is
told as well. A run that is finished in --out is not asked again, so that the table of several
models can be made at the end.
"""

import argparse
import contextlib
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
import urllib.request
from collections import defaultdict
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
sys.path.insert(0, str(Path(__file__).parents[1]))

from capacity import served
from cot_reward.client.structured import forced
from cot_reward.judge.grammar import grammar
from cot_reward.stats import paired_difference
from cot_reward.tasks import TASKS
from helpers.environments import REPO
from helpers.rows import read_lines

SETTINGS = ("off", "on")
WAYS = {"greedy": ("--temperature", "0"), "T=1": ("--temperature", "1")}
# A text counts for a column where this holds of its row.
COLUMNS = {
    "well-formed": lambda row: row["answer"] > 0,
    "accuracy": lambda row: row["verdict"] == "correct",
    "coherent": lambda row: row["coherence"] == "coherent",
    "truncated": lambda row: row["verdict"] == "truncated",
}


def first_requests(url: str, model: str) -> dict[str, float]:
    """Seconds of single requests for one token, in this order; the last three: median of 20."""
    free: dict[str, Any] = {}
    form = forced(grammar("think", TASKS["image_generation"]))

    def seconds(fields: dict[str, Any]) -> float:
        body = {
            "model": model, "max_tokens": 1, "temperature": 0,
            "messages": [{"role": "user", "content": "Text Caption: [a red circle]"}], **fields,
        }  # fmt: skip
        request = urllib.request.Request(
            f"{url}/chat/completions", json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )  # fmt: skip
        began = time.perf_counter()
        with urllib.request.urlopen(request, timeout=600) as answer:
            answer.read()
        return time.perf_counter() - began

    found = {"the server's first": seconds(free), "first without": seconds(free)}
    found["first of any regex"] = seconds(forced("Z"))
    found["first with the form"] = seconds(form)
    for name, fields in (("without", free), ("with the form", form)):
        found[name] = statistics.median(seconds(fields) for _ in range(20))
    return found


def server_seconds() -> float:
    """The CPU time so far of the living processes that this one has started: the server's."""
    parents, seconds = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            values = path.read_text().rpartition(")")[2].split()
            parents[path.parent.name] = values[1]
            seconds[path.parent.name] = int(values[11]) + int(values[12])
    ours = {str(os.getpid())}
    while grown := {child for child, parent in parents.items() if parent in ours} - ours:
        ours |= grown
    ticks = sum(seconds[process] for process in ours - {str(os.getpid())})
    return ticks / os.sysconf("SC_CLK_TCK")


def ask(
    options: argparse.Namespace, url: str, model: Path, out: Path, flags: Sequence[str]
) -> None:
    if (out / "summary.json").exists():
        return
    data = options.demo / "dataset"
    command = [
        sys.executable, "scripts/image_stream_gpt.py", "--config", "configs/demo/inference.yaml",
        "--template", model / "template.txt", "--media-root", data, "--image-root",
        data / "demo/images", "--data", data / "demo/heldout.json", data / "demo/heldout_new.json",
        "--base-url", url, "--out", out, "--min-parsed", 0,
        "--num-samples", 1, *flags,
    ]  # fmt: skip
    began = server_seconds()
    done = subprocess.run(
        list(map(str, command)), cwd=REPO, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{out}: exit {done.returncode}\n{done.stderr[-3000:]}")
    (out / "cpu.json").write_text(json.dumps(server_seconds() - began))
    rate = json.loads((out / "summary.json").read_text())["completion_tokens_per_second"]
    print(f"{out}: {rate:.0f} tokens/s", file=sys.stderr)


def run_folders(options: argparse.Namespace, name: str) -> dict[tuple[str, str, int], Path]:
    """(setting, way, round) -> folder."""
    ways = [("greedy", 0)] + [("T=1", number) for number in range(options.rounds)]
    return {
        (setting, way, number): options.out / name / f"{way}-{number}-{setting}"
        for way, number in ways
        for setting in SETTINGS
    }


def measure(options: argparse.Namespace, name: str) -> None:
    """All runs of one model that are missing."""
    folders = run_folders(options, name)
    firsts = options.out / name / "first_requests.json"
    if firsts.exists() and all((folder / "summary.json").exists() for folder in folders.values()):
        return
    model = options.demo / "runs/demo" / name
    firsts.parent.mkdir(parents=True, exist_ok=True)
    with served(str(model), firsts.parent) as url:
        firsts.write_text(json.dumps(first_requests(url, str(model))))
        # Caches of server and disk serve all runs alike.
        for setting in SETTINGS:
            flags = ["--limit", "10", "--structured-output", setting, "--seed", "99"]
            ask(options, url, model, options.out / name / f"warm-{setting}", flags)
        shuffled = random.Random(name)
        for way, number in sorted({(way, number) for _, way, number in folders}):
            for setting in shuffled.sample(SETTINGS, 2):
                flags = [*WAYS[way], "--seed", str(number), "--structured-output", setting]
                flags += ["--limit", str(options.limit)]
                ask(options, url, model, folders[setting, way, number], flags)


def values(folders: Sequence[Path], column: str) -> dict[str, float]:
    """comparison -> the share of its texts in all folders for which the column holds."""
    found = defaultdict[str, list[float]](list)
    for folder in folders:
        for file in ("correct", "incorrect", "unusable"):
            for row in read_lines(folder / f"{file}.jsonl"):
                found[row["id"]].append(float(COLUMNS[column](row)))
    return {key: statistics.mean(texts) for key, texts in found.items()}


def rates(options: argparse.Namespace, name: str, setting: str, way: str) -> dict[str, list[float]]:
    """Of each round."""
    found = defaultdict[str, list[float]](list)
    for (s, w, _), folder in run_folders(options, name).items():
        if (s, w) == (setting, way):
            summary = json.loads((folder / "summary.json").read_text())
            seconds = json.loads((folder / "cpu.json").read_text())
            found["tokens/s"].append(summary["completion_tokens_per_second"])
            found["requests/s"].append(summary["requests_per_second"])
            found["CPU"].append(seconds / summary["completion_tokens"])
    return found


def spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def report(options: argparse.Namespace, names: Sequence[str]) -> None:
    stages = [(f"{stage}, pooled", [n for n in names if n.endswith(stage)])
              for stage in options.stages]  # fmt: skip
    print(f"| model | | {' | '.join(f'{name}: off, on, difference' for name in COLUMNS)} |")
    print("|---" * (2 + len(COLUMNS)) + "|")
    for way in WAYS:
        for title, models in [*((name, [name]) for name in names), *stages]:
            cells = []
            for column in COLUMNS:
                off, on = (
                    values(
                        [
                            folder
                            for model in models
                            for (s, w, _), folder in run_folders(options, model).items()
                            if (s, w) == (setting, way)
                        ],
                        column,
                    )
                    for setting in SETTINGS
                )
                keys = sorted(off)
                paired = paired_difference([on[k] for k in keys], [off[k] for k in keys])
                cells.append(
                    f"{100 * statistics.mean(off.values()):.1f}, "
                    f"{100 * statistics.mean(on.values()):.1f}, {100 * paired['difference']:+.1f} "
                    f"[{100 * paired['low']:+.1f}, {100 * paired['high']:+.1f}]"
                )
            print(f"| {title} | {way} | {' | '.join(cells)} |")
    print("\n| model | | tokens/s off | on | on/off: tokens/s | requests/s | CPU time a token |")
    print("|---" * 7 + "|")
    for way in WAYS:
        pooled = defaultdict[str, list[float]](list)
        for name in names:
            found = {setting: rates(options, name, setting, way) for setting in SETTINGS}
            ratios = {
                field: [on / off for off, on in zip(of_off, found["on"][field], strict=True)]
                for field, of_off in found["off"].items()
            }
            for field, of_rounds in ratios.items():
                pooled[field] += of_rounds
            medians = [f"{statistics.median(found[s]['tokens/s']):.0f}" for s in SETTINGS]
            print(f"| {name} | {way} | {' | '.join([*medians, *map(spread, ratios.values())])} |")
        print(f"| all | {way} | | | {' | '.join(map(spread, pooled.values()))} |")
    print("\nSeconds of single requests for one token, in their order, by model:")
    for name in names:
        found = json.loads((options.out / name / "first_requests.json").read_text())
        print(f"- {name}: " + ", ".join(f"{what} {took:.3f}" for what, took in found.items()))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--demo", type=Path, default=REPO, help="folder of runs/ and dataset/")
    parser.add_argument("--seeds", nargs="+", default=["0", "1"])
    parser.add_argument("--stages", nargs="+", default=["stage1", "stage3"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit", type=int, default=375, help="comparisons of the later rounds")
    parser.add_argument("--out", type=Path, default=REPO / "runs/bench_structured")
    options = parser.parse_args()
    names = [f"seed{seed}/{stage}" for seed in options.seeds for stage in options.stages]
    for name in names:
        measure(options, name)
    print(
        f"{date.today()}; {os.cpu_count()} cores, Python {platform.python_version()}; models "
        f"{', '.join(names)}; {options.rounds} rounds.\n"
    )
    report(options, names)


if __name__ == "__main__":
    main()
