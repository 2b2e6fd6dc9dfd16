"""The client on 1, 2, 4 and 8 servers that answer 40 requests/s each: what share of all is had.

    .envs/main/bin/python tests/bench/fleet.py [--servers 1 2 4 8] [--processes 1 2] [--rounds 3]
        [--seconds 15] [--size 512] [--media inline file] [--unseen]

Each server works on 16 requests at a time, for 0.4 s each. Two distinct images an item; without
`--unseen` they were read in a run before, so that nothing is decoded. Client and servers share the
machine. Prints Markdown: requests/s by the client's summary, the share of 40 x servers, and CPU of
the client's processes; medians over rounds in turns.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from client import (
    REPO,
    SCRIPT,
    TEMPLATE,
    environment,
    in_own_process,
    spread,
    write_pictures,
    write_rows,
)
from fast_server import FastServer

SLOTS, SECONDS = 16, 0.4
RATE = SLOTS / SECONDS
# More than the servers work on, so that none waits for the network.
IN_FLIGHT = 24


def run(
    folder: Path, servers: list[FastServer], data: Path, processes: int, media: str
) -> tuple[float, float]:
    """Requests per second while asking, and CPU ms of the client for each request."""
    out = Path(tempfile.mkdtemp(dir=folder))
    command = [
        *SCRIPT, "--config", folder / "empty.yaml", "--data", data, "--media-root",
        folder / "media", "--image-root", folder / "media/images", "--template", TEMPLATE,
        "--base-url", *(server.url for server in servers), "--out", out, "--num-samples", 1,
        "--orders", "given", "--concurrency", IN_FLIGHT, "--processes", processes,
        "--media", media,
    ]  # fmt: skip
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [str(part) for part in command], cwd=REPO, stdout=log, stderr=subprocess.STDOUT
        )
        _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit((folder / "log").read_text()[-3000:])
    summary = json.loads((out / "summary.json").read_text())
    cpu = 1000 * (used.ru_utime + used.ru_stime) / summary["account"]["judged"]
    return summary["requests_per_second"], cpu


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--servers", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--media", nargs="+", default=["inline", "file"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=15, help="that a run takes, if linear")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--unseen", action="store_true")
    options = parser.parse_args()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    options.curator = ""
    print(environment(options))
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        (folder / "empty.yaml").write_text("")
        most = max(options.servers)
        servers = [
            stack.enter_context(FastServer(slots=SLOTS, seconds=SECONDS)) for _ in range(most)
        ]
        items = {count: int(count * RATE * options.seconds) for count in options.servers}
        images = folder / "media/images"
        in_own_process(write_pictures, images, 2 * items[most], options.size, "jpeg")
        data = {
            count: write_rows(
                folder / f"{count}.json", [(2 * n, 2 * n + 1) for n in range(items[count])], "jpeg"
            )
            for count in options.servers
        }
        if not options.unseen:
            run(folder, servers, data[most], 1, "inline")
        cases = [
            (count, processes, media)
            for media in options.media
            for processes in options.processes
            for count in options.servers
        ]
        found: dict[tuple[int, int, str], list[tuple[float, float]]] = {case: [] for case in cases}
        for number in range(options.rounds):
            at = number % len(cases)
            for case in cases[at:] + cases[:at]:
                count, processes, media = case
                if options.unseen:
                    subprocess.run(["rm", "-rf", str(folder / "media/.cache")], check=True)
                time.sleep(1)
                found[case].append(run(folder, servers[:count], data[count], processes, media))
                print(case, found[case][-1], file=sys.stderr)
        print("| media | processes | servers | requests/s | of linear | client CPU ms a request |")
        print("|" + "---|" * 6)
        for case in cases:
            count, processes, media = case
            rates, cpus = zip(*found[case], strict=True)
            share = statistics.median(rates) / (count * RATE)
            print(
                f"| {media} | {processes} | {count} | {spread(list(rates), 1)} | {share:.2f} "
                f"| {spread(list(cpus), 2)} |"
            )


if __name__ == "__main__":
    main()
