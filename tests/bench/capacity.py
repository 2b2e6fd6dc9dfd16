"""Does `--concurrency auto` reach what the best fixed concurrency does? Against a real server.

    .envs/main/bin/python tests/bench/capacity.py [--rounds 5] [--limit 300]
        [--concurrency auto 16 32 64 128 256] [--base-url http://127.0.0.1:8000/v1]

Needs runs/demo/seed0/stage2 and dataset/demo (`make demo` writes them); without --base-url it
serves that model itself. Each round asks the same comparisons once in every setting, in random
order; output tokens/s are the client's own, from summary.json. Choose --limit such that a run takes
15 s or more.
"""

import argparse
import contextlib
import json
import os
import platform
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

REPO = Path(__file__).parents[2]
SCRIPT = [sys.executable, "scripts/image_stream_gpt.py"]


@contextlib.contextmanager
def served(model: str, folder: Path) -> Iterator[str]:
    """The base URL of a server of our own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [
            "scripts/serve.sh", model, "--port", str(port),
            "--limit-mm-per-prompt", '{"image":2}', "--max-num-seqs", "256",
        ],
        cwd=REPO, env=os.environ | {"SERVE_LOG": str(folder / "serve.log")},
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        if not url:
            sys.exit("no server; its last lines are above")
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def ask(
    options: argparse.Namespace, url: str, setting: str, seed: int, folder: Path
) -> dict[str, Any]:
    """The summary of one run into a fresh folder."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        command = [
            *SCRIPT, "--config", "configs/demo/inference.yaml", "--data", options.data,
            "--image-root", options.image_root, "--template", "configs/demo/template.txt",
            "--base-url", url, "--out", f"{name}/out", "--limit", str(options.limit),
            "--concurrency", setting, "--seed", str(seed),
        ]  # fmt: skip
        done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{setting}: exit {done.returncode}\n{done.stderr[-3000:]}")
        summary: dict[str, Any] = json.loads(Path(name, "out/summary.json").read_text())
    if summary["account"]["judged"] != summary["account"]["expected"]:
        sys.exit(f"{setting}: {summary['account']}")
    return summary


def report(seen: dict[str, list[float]], seconds: dict[str, list[float]]) -> None:
    fixed = [name for name in seen if name != "auto"]
    best = [max(seen[name][at] for name in fixed) for at in range(len(seen[fixed[0]]))]
    print("| concurrency | tokens/s | of the best fixed in the same round | s per run |")
    print("|---|---|---|---|")
    medians = {name: statistics.median(values) for name, values in seen.items()}
    shares = {
        name: statistics.median(a / b for a, b in zip(values, best, strict=True))
        for name, values in seen.items()
    }
    for name, values in seen.items():
        print(
            f"| {name} | {medians[name]:.0f} ({min(values):.0f} to {max(values):.0f}) "
            f"| {shares[name]:.3f} | {statistics.median(seconds[name]):.1f} |"
        )
    overall = max(fixed, key=lambda name: medians[name])
    print(f"\nThe best fixed concurrency by medians: {overall}.")
    if "auto" in seen:
        paired = [a / b for a, b in zip(seen["auto"], seen[overall], strict=True)]
        print(
            f"auto / best fixed of the same round, median: {shares['auto']:.3f}; "
            f"auto / {overall}, medians: {medians['auto'] / medians[overall]:.3f}, "
            f"round by round: {', '.join(f'{value:.3f}' for value in paired)}."
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--limit", type=int, default=300, help="comparisons per run")
    parser.add_argument(
        "--concurrency", nargs="+", default=["auto", "16", "32", "64", "128", "256"]
    )
    parser.add_argument("--base-url", help="a running server; its own without it")
    parser.add_argument("--model", default="runs/demo/seed0/stage2", help="what is served")
    parser.add_argument("--data", default="dataset/demo/dpo.json")
    parser.add_argument("--image-root", default="dataset/demo/images")
    parser.add_argument("--seed", type=int, default=0, help="of the order of the settings")
    options = parser.parse_args()
    if set(options.concurrency) <= {"auto"}:
        parser.error("--concurrency needs a fixed one to compare with")
    shuffled = random.Random(options.seed)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        url = options.base_url or stack.enter_context(served(options.model, folder))
        settings = list(options.concurrency)
        # The first run warms the server up, and caches of the images there serve all others alike.
        ask(options, url, settings[-1], 0, folder)
        seen: dict[str, list[float]] = {setting: [] for setting in settings}
        seconds: dict[str, list[float]] = {setting: [] for setting in settings}
        summary: dict[str, Any] = {}
        for number in range(options.rounds):
            for setting in shuffled.sample(settings, len(settings)):
                summary = ask(options, url, setting, number + 1, folder)
                seen[setting].append(summary["completion_tokens_per_second"])
                seconds[setting].append(summary["completion_tokens"] / seen[setting][-1])
                print(
                    f"round {number + 1}: {setting}: {seen[setting][-1]:.0f} tokens/s "
                    f"in {seconds[setting][-1]:.1f} s",
                    file=sys.stderr,
                )
    print(
        f"{date.today()}; {os.cpu_count()} cores, Python {platform.python_version()}; "
        f"{options.limit} comparisons, {summary['account']['judged']} responses and about "
        f"{summary['completion_tokens'] / summary['account']['judged']:.0f} output tokens each per "
        f"run; {options.rounds} rounds.\n"
    )
    report(seen, seconds)


if __name__ == "__main__":
    main()
