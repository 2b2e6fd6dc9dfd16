"""RewardModel next to the client on the same server and pictures; what its intervals hold.

    .envs/main/bin/python tests/bench/reward.py [--pairs 1000] [--rounds 5] [--draws 400]

Two pictures a pair, both orders, one text each, against a mock server that costs almost nothing, in
alternating rounds. Pairs/s are from the first request to the last answer that the server saw. Then
a ranking of eight pictures, and the share of the drawn strengths that the 95% intervals hold.
Prints Markdown.
"""

import argparse
import json
import math
import platform
import random
import shutil
import statistics
import sys
import tempfile
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path

from client import REPO, SCRIPT, TEMPLATE, run, write_pictures, write_rows
from fast_server import FastServer

sys.path.insert(0, str(REPO / "scripts"))
CONCURRENCY = 64
MODEL = """
import json, sys
sys.path.insert(0, "scripts")
from cot_reward import RewardModel
url, template, rows, folder, concurrency = sys.argv[1:]
with open(rows) as file:
    items = [(row["prompt"], *(f"{folder}/{name}" for name in row["images"]))
             for row in json.load(file)]
with RewardModel(url, template=template, concurrency=concurrency) as model:
    found = model.compare_many(items)
assert all(found), [one for one in found if not one][0]
"""
# Candidates, comparisons (None: all pairs), votes, spread of the strengths.
DRAWS = [(2, None, 1, 1.0), (2, None, 4, 1.0), (2, None, 8, 3.0), (4, None, 1, 1.0),
         (4, None, 1, 3.0), (4, None, 4, 3.0), (8, None, 1, 1.0), (8, None, 1, 3.0),
         (8, None, 4, 2.0), (8, 10, 1, 1.0), (8, 10, 4, 3.0), (16, 40, 2, 2.0)]  # fmt: skip


def speed(folder: Path, pairs: int, rounds: int) -> None:
    write_pictures(folder / "media", 2 * pairs, 512, "jpg")
    rows = write_rows(folder / "rows.json", [(2 * n, 2 * n + 1) for n in range(pairs)], "jpg")
    (folder / "empty.yaml").write_text("")
    found: dict[str, list[tuple[float, float]]] = {"client": [], "RewardModel": []}
    with FastServer() as server:
        for number in range(rounds + 1):
            commands = {
                "client": [
                    *SCRIPT, "--config", folder / "empty.yaml", "--data", rows, "--media-root",
                    folder / "media", "--num-samples", 1, "--temperature", 0, "--template",
                    TEMPLATE, "--concurrency", CONCURRENCY, "--out", folder / f"out{number}",
                    "--base-url", server.url,
                ],
                "RewardModel": [
                    sys.executable, "-c", MODEL, server.url, TEMPLATE, rows, folder / "media",
                    CONCURRENCY,
                ],
            }  # fmt: skip
            for name in sorted(commands, reverse=bool(number % 2)):
                # The client notes there which pictures it has seen; the model starts without.
                shutil.rmtree(folder / "media" / ".cache", ignore_errors=True)
                done = run(commands[name], 2 * pairs, server, folder / "log")
                # The first round fills the disk's cache.
                if number:
                    found[name].append((pairs / done.asking, 1000 * done.cpu / pairs))
    print("| | pairs/s (median, least, most) | CPU of the process, ms a pair |\n|---|---|---|")
    for name, values in found.items():
        rates, cpu = zip(*values, strict=True)
        print(
            f"| {name} | {statistics.median(rates):.0f} ({min(rates):.0f} to {max(rates):.0f}) | "
            f"{statistics.median(cpu):.1f} |"
        )
    ratios = [
        ours[0] / client[0]
        for ours, client in zip(found["RewardModel"], found["client"], strict=True)
    ]
    print(f"\nRewardModel over the client, by round: {', '.join(f'{one:.2f}' for one in ratios)}; "
          f"median {statistics.median(ratios):.2f}.\n")  # fmt: skip


def ranking(folder: Path) -> None:
    from cot_reward import RewardModel

    write_pictures(folder / "large", 8, 1024, "png")
    files = [str(folder / "large" / f"{n}.png") for n in range(8)]
    with FastServer() as server, RewardModel(server.url, template=TEMPLATE) as model:
        began = time.perf_counter()
        model.rank("a red cube", files)
        took = time.perf_counter() - began
        print(
            f"A ranking of 8 PNG pictures of 1024 x 1024 by all 28 pairs in both orders: "
            f"{model.encoded_pictures} pictures decoded and encoded for 112 places in requests, "
            f"{took:.2f} s.\n"
        )


def coverage(draws: int) -> None:
    from cot_reward.reward import bradley_terry
    from cot_reward.reward.schedule import pairs_of

    print(
        "| candidates | comparisons | votes | spread | held by 95% intervals | by standard errors "
        "| ms a fit |\n|---|---|---|---|---|---|---|"
    )
    for count, most, votes, spread in DRAWS:
        draw = random.Random(f"{count} {most} {votes} {spread}")
        held = {bradley_terry.MOST_PROFILED: 0, 0: 0}
        spent = 0.0
        for seed in range(draws):
            true = [draw.gauss(0, spread) for _ in range(count)]
            true = [one - sum(true) / count for one in true]
            results = []
            for i, j in pairs_of(count, most, seed):
                p = 1 / (1 + math.exp(true[j] - true[i]))
                results.append((i, j, sum(draw.random() < p for _ in range(votes)) / votes, votes))
            # Of more candidates than this the intervals are those of standard errors.
            for bradley_terry.MOST_PROFILED in held:
                began = time.perf_counter()
                found = bradley_terry.fit(count, results)
                spent += (time.perf_counter() - began) * bool(bradley_terry.MOST_PROFILED)
                inside = map(lambda a, b, c: a <= b <= c, found.low, true, found.high)
                held[bradley_terry.MOST_PROFILED] += sum(inside)
            bradley_terry.MOST_PROFILED = max(held)
        number = count * (count - 1) // 2 if most is None else most
        profile, standard = (f"{100 * one / (draws * count):.1f}%" for one in held.values())
        print(
            f"| {count} | {number} | {votes} | {spread} | {profile} | {standard} "
            f"| {1000 * spent / draws:.0f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--draws", type=int, default=400)
    options = parser.parse_args()
    versions = {name: version(name) for name in ("openai", "aiohttp", "pillow", "numpy")}
    print(f"{date.today()}, Python {platform.python_version()}, {json.dumps(versions)}\n")
    with tempfile.TemporaryDirectory() as folder:
        speed(Path(folder), options.pairs, options.rounds)
        ranking(Path(folder))
    coverage(options.draws)


if __name__ == "__main__":
    main()
