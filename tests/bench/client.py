"""The client next to other clients, in rounds, against a mock server that costs almost nothing.

    .envs/main/bin/python tests/bench/client.py [--items 2000] [--rounds 3] [--curator PYTHON]
        [--only NAME ...] [--rss-items 1000 10000 100000] [--format png] [--size 512]

Two distinct images per item, answers of 300 tokens. Prints Markdown: items/s while asking (ours: by
its summary; others: from the first request to the last answer that the server saw), and CPU of the
whole process less that of a run of 8 items, so that reading the rows and writing the files count
and imports do not. What reading the images costs is measured apart, in one process. Then the peak
memory over ever more items.

`--curator` is the interpreter of an environment that holds bespokelabs-curator.
"""

import argparse
import json
import multiprocessing
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fast_server import ANSWER_TOKENS, FastServer

REPO = Path(__file__).parents[2]
SCRIPT = [sys.executable, "scripts/image_stream_gpt.py"]
OTHER_CLIENTS = "tests/bench/other_clients.py"
TEMPLATE = REPO / "configs/demo/template.txt"
# Items of the run that stands for start-up.
START_UP_ITEMS = 8
OURS = ("ours", "ours-file", "ours-again", "ours-file-again")
# The original pictures; every file is one of them plus a comment of its own.
DISTINCT_PICTURES = 16
MEMORY_RUN_PIXELS = 64


# --- inputs ---------------------------------------------------------------------------------------


def pictures(size: int, form: str) -> Iterator[bytes]:
    """Photo-like pictures, encoded: noise over gradients, about 180 KB at 512 x 512 as JPEG."""
    import io

    import numpy
    from PIL import Image

    generator = numpy.random.default_rng(0)
    y, x = numpy.mgrid[0:size, 0:size] / size
    for _ in range(DISTINCT_PICTURES):
        a, b, c = generator.uniform(0, 160, (3, 3))
        base = x[..., None] * a + y[..., None] * b + numpy.sin(9 * x * y)[..., None] * c / 2 + 20
        coarse = generator.normal(0, 12, (size // 4, size // 4, 3)).repeat(4, 0).repeat(4, 1)
        noise = coarse + generator.normal(0, 12, (size, size, 1))
        image = Image.fromarray((base + noise).clip(0, 255).astype("uint8"))
        buffer = io.BytesIO()
        if form == "png":
            image.save(buffer, "PNG")
        else:
            image.save(buffer, "JPEG", quality=95)
        yield buffer.getvalue()


def with_comment(data: bytes, comment: bytes) -> bytes:
    """The encoded picture with a comment: other bytes, the same pixels."""
    if data.startswith(b"\xff\xd8"):
        return data[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + data[2:]
    chunk = b"tEXt" + b"Comment\0" + comment
    block = (len(chunk) - 4).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    end = 8 + 25  # the signature and the header come first
    return data[:end] + block + data[end:]


def write_pictures(folder: Path, count: int, size: int, form: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    originals = list(pictures(size, form))
    for number in range(count):
        data = with_comment(originals[number % DISTINCT_PICTURES], b"%d" % number)
        (folder / f"{number}.{form}").write_bytes(data)


def write_rows(path: Path, pairs: Sequence[tuple[int, int]], form: str) -> Path:
    """Rows as upstream publishes them, each with its own caption."""
    with path.open("w") as file:
        for number, (first, second) in enumerate(pairs):
            label = 1 + number % 2
            preference = f"Image {label} is better than Image {3 - label}."
            row = {
                "prompt": f"a red cube on a blue sphere beside a window at dusk, number {number}",
                "images": [f"{first}.{form}", f"{second}.{form}"],
                "conversations": [
                    {"from": "human", "value": "Which image is better?"},
                    {"from": "gpt", "value": preference},
                ],
            }
            file.write(("[" if not number else ",\n") + json.dumps(row))
        file.write("]\n")
    return path


# --- one process ----------------------------------------------------------------------------------


def in_own_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """The function's result, from a process of its own: ours has to stay small, since the peak
    memory of a child counts from what its parent had when it was started."""
    with multiprocessing.Pool(1) as pool:
        return pool.apply(function, arguments)


def preparing(paths: list[Path]) -> float:
    """CPU seconds for opening, decoding, checking and, where needed, resizing these pictures."""
    sys.path.insert(0, str(REPO / "scripts"))
    from cot_reward.media.images import bound, load_image, needs_bound

    def one(path: Path) -> None:
        image = load_image(path)
        if needs_bound(image):
            bound(image)

    one(paths[0])  # decoders are loaded at the first picture
    started = time.process_time()
    for path in paths:
        one(path)
    return time.process_time() - started


@dataclass(frozen=True)
class Run:
    """A process that has ended, and what the server saw of it."""

    items: int
    wall: float
    cpu: float
    peak_mib: float
    asking: float
    server_cpu: float


def run(command: Sequence[object], items: int, server: FastServer, log: Path) -> Run:
    """Run a client to its end. Exits when it fails or did not ask for every item."""
    server.seen()
    started = time.monotonic()
    with log.open("w") as file:
        process = subprocess.Popen(
            [str(part) for part in command], cwd=REPO, stdout=file, stderr=subprocess.STDOUT
        )
        _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    wall = time.monotonic() - started
    seen = server.seen()
    if process.returncode or seen.items < items:
        log_end = log.read_text()[-3000:]
        sys.exit(f"{command}\nexit {process.returncode}, {seen.items} of {items} asked\n{log_end}")
    cpu, peak = used.ru_utime + used.ru_stime, used.ru_maxrss / 1024
    return Run(items, wall, cpu, peak, seen.seconds, seen.cpu_seconds)


class Clients:
    """The command lines, by name, about one folder of pictures."""

    def __init__(self, folder: Path, server: FastServer, options: argparse.Namespace) -> None:
        self._folder, self._server, self._options = folder, server, options
        self._runs = 0
        (folder / "empty.yaml").write_text("")

    def names(self) -> list[str]:
        curator = ["curator"] if self._options.curator else []
        return [*OURS, "streaming", "plain", "aiohttp", *curator]

    def command(self, name: str, data: Path, images: Path, out: Path) -> list[object]:
        if name.startswith("ours"):
            return [
                *SCRIPT, "--config", self._folder / "empty.yaml", "--data", data,
                "--media-root", images.parent, "--image-root", images, "--template", TEMPLATE,
                "--base-url", self._server.url, "--out", out, "--num-samples", 1,
                "--orders", "given", "--concurrency", self._options.concurrency,
                *(["--media", "file"] if "file" in name else []), *self._options.ours,
            ]  # fmt: skip
        python = self._options.curator if name == "curator" else sys.executable
        return [
            python,
            OTHER_CLIENTS,
            name,
            data,
            images,
            TEMPLATE,
            self._server.url,
            out / "answers",
        ]

    def run(self, name: str, data: Path, images: Path, items: int) -> Run:
        # Nothing that an earlier run has kept may help, but where that is the question.
        shutil.rmtree(images.parent / ".cache", ignore_errors=True)
        if name.endswith("-again"):
            self._run(name, data, images, items)
        return self._run(name, data, images, items)

    def _run(self, name: str, data: Path, images: Path, items: int) -> Run:
        self._runs += 1
        out = self._folder / f"out{self._runs}"
        out.mkdir()
        done = run(self.command(name, data, images, out), items, self._server, self._folder / "log")
        if name.startswith("ours"):
            summary = json.loads((out / "summary.json").read_text())
            if summary["account"]["judged"] != items:
                sys.exit(f"{name}: {items} items, but {summary['account']}")
            # The server's first request comes when the first images are ready already.
            done = replace(
                done, asking=items * ANSWER_TOKENS / summary["completion_tokens_per_second"]
            )
        shutil.rmtree(out)
        return done


# --- measurements ---------------------------------------------------------------------------------

TITLES = {
    "ours": "ours, `--media inline`",
    "ours-file": "ours, `--media file`",
    "ours-again": "ours, `--media inline`, images seen before",
    "ours-file-again": "ours, `--media file`, images seen before",
    "streaming": "(a) AsyncOpenAI, streaming, 16 workers",
    "plain": "(a2) AsyncOpenAI, not streaming, 64 in flight",
    "aiohttp": "(a3) as (a2), with the SDK's aiohttp transport",
    "curator": "(b) bespokelabs-curator, 64 in flight",
}
# Slow clients get fewer items; their cost per item does not depend on how many.
ITEM_SHARES = {"streaming": 0.2, "curator": 0.5}


def throughput(folder: Path, server: FastServer, options: argparse.Namespace) -> None:
    form = options.format
    images = folder / "media" / "images"
    in_own_process(write_pictures, images, 2 * options.items, options.size, form)
    clients = Clients(folder, server, options)
    names = [name for name in clients.names() if not options.only or name in options.only]
    counts = {
        name: max(START_UP_ITEMS + 1, int(options.items * ITEM_SHARES.get(name, 1)))
        for name in names
    }
    data = {
        count: write_rows(
            folder / f"{count}.json", [(2 * n, 2 * n + 1) for n in range(count)], form
        )
        for count in {START_UP_ITEMS, *counts.values()}
    }
    first = [images / f"{number}.{form}" for number in range(min(400, 2 * options.items))]
    size = statistics.mean(path.stat().st_size for path in first) / 1000
    few: dict[str, list[Run]] = {name: [] for name in names}
    many: dict[str, list[Run]] = {name: [] for name in names}
    media: list[float] = []
    for number in range(options.rounds):
        # Each round begins with another client.
        at = number % len(names)
        for name in names[at:] + names[:at]:
            few[name].append(clients.run(name, data[START_UP_ITEMS], images, START_UP_ITEMS))
            many[name].append(clients.run(name, data[counts[name]], images, counts[name]))
            progress(f"round {number + 1}: {name}", few[name][-1], many[name][-1])
        media.append(2 * 1000 * in_own_process(preparing, first) / len(first))
    print(
        f"Items of two {options.size} x {options.size} {form.upper()} images of {size:.0f} KB, "
        f"all bytes distinct; answers of {ANSWER_TOKENS} tokens (streamed: in "
        f"{options.stream_writes} writes); `--concurrency {options.concurrency}`; "
        f'medians of {options.rounds} rounds. "x (a)": median over the rounds of the rate over '
        f"that of (a) in the same round.\n"
    )
    print(
        "| client | items | items/s | x (a) | CPU ms/item | beside images | peak RSS MiB "
        "| whole run s | start-up s | server CPU ms/item |\n|" + "---|" * 10
    )
    rate = {name: [done.items / done.asking for done in many[name]] for name in names}
    for name in names:
        start_up = statistics.median(done.cpu for done in few[name])
        cpu = [cpu_ms(done, start_up) for done in many[name]]
        without_images = [
            spent - images_only for spent, images_only in zip(cpu, media, strict=True)
        ]
        cells = [
            TITLES[name],
            str(counts[name]),
            f"{spread(rate[name], 1)}",
            ratio(rate[name], rate["streaming"]) if "streaming" in rate else "",
            spread(cpu, 2),
            spread(without_images, 2) if name in ("ours", "ours-file") else "",
            f"{statistics.median(done.peak_mib for done in many[name]):.0f}",
            f"{statistics.median(done.wall for done in many[name]):.1f}",
            f"{statistics.median(done.wall for done in few[name]):.1f}",
            f"{statistics.median(1000 * d.server_cpu / d.items for d in many[name]):.2f}",
        ]
        print(f"| {' | '.join(cells)} |")
    print(
        f"\nOpening, decoding, checking and resizing the two images of an item, alone in one "
        f"process: {spread(media, 2)} CPU ms.\n"
    )


def cpu_ms(done: Run, start_up: float) -> float:
    """CPU per item beyond that of a run of a few items."""
    return 1000 * (done.cpu - start_up) / (done.items - START_UP_ITEMS)


def spread(values: list[float], digits: int) -> str:
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def ratio(values: list[float], base: list[float]) -> str:
    return f"{statistics.median(a / b for a, b in zip(values, base, strict=True)):.1f}"


def progress(what: str, few: Run, many: Run) -> None:
    rate, cpu = many.items / many.asking, cpu_ms(many, few.cpu)
    print(f"{what}: {rate:.1f} items/s, {cpu:.2f} CPU ms/item", file=sys.stderr)


def memory(folder: Path, server: FastServer, options: argparse.Namespace) -> None:
    most = max(options.rss_items)
    count = 2
    while count * (count - 1) // 2 < most:
        count += 1
    images = folder / "small" / "images"
    in_own_process(write_pictures, images, count, MEMORY_RUN_PIXELS, "jpeg")
    clients = Clients(folder, server, options)
    pairs = [(a, b) for a in range(count) for b in range(a + 1, count)]
    print(
        f"Peak memory of `{TITLES['ours'].split('`')[1]}` over ever more items "
        f"({MEMORY_RUN_PIXELS} x {MEMORY_RUN_PIXELS} JPEG images, every pair of {count} of them "
        "once):\n"
    )
    print("| items | peak RSS MiB | KiB per further item | items/s | CPU ms/item | whole run s |")
    print("|" + "---|" * 6)
    few = clients.run(
        "ours",
        write_rows(folder / "few.json", pairs[:START_UP_ITEMS], "jpeg"),
        images,
        START_UP_ITEMS,
    )
    peaks: list[float] = []
    before = None
    for items in options.rss_items:
        rows = write_rows(folder / f"{items}.json", pairs[:items], "jpeg")
        done = clients.run("ours", rows, images, items)
        rows.unlink()
        more = ""
        if before and done.items > before.items:
            grown = 1024 * (done.peak_mib - before.peak_mib) / (done.items - before.items)
            more = f"{grown:.2f}"
        print(
            f"| {items} | {done.peak_mib:.0f} | {more} | {done.items / done.asking:.1f} "
            f"| {cpu_ms(done, few.cpu):.2f} | {done.wall:.1f} |",
            flush=True,
        )
        before = done
        peaks.append(done.peak_mib)
    print(f"\nPeak at {options.rss_items[-1]} items over the first: {peaks[-1] / peaks[0]:.2f}\n")


def environment(options: argparse.Namespace) -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    held = [f"{name} {version(name)}" for name in ("openai", "aiohttp", "pillow")]
    if options.curator:
        code = "from importlib.metadata import version as v; print(v('bespokelabs-curator'))"
        printed = subprocess.run([options.curator, "-c", code], capture_output=True, text=True)
        held.append(f"bespokelabs-curator {printed.stdout.strip()}")
    return (
        f"{date.today()}; {os.cpu_count()} cores, {memory:.0f} GiB, load {os.getloadavg()[0]:.1f} "
        f"at the start; Python {platform.python_version()}, {', '.join(held)}.\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, default=2000, help="0: only the memory")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--rss-items", type=int, nargs="*", default=[1000, 10_000, 100_000], help="none: no memory"
    )
    parser.add_argument("--format", choices=("jpeg", "png"), default="jpeg")
    parser.add_argument("--size", type=int, default=512, help="of the images' sides")
    parser.add_argument("--concurrency", default="64", help="of ours")
    parser.add_argument(
        "--stream-writes", type=int, default=8, help="parts that a streamed answer comes in"
    )
    parser.add_argument("--curator", help="interpreter that has bespokelabs-curator")
    parser.add_argument("--only", nargs="+", choices=TITLES, help="measure these alone")
    parser.add_argument("--ours", nargs=argparse.REMAINDER, default=[], help="more flags of ours")
    options = parser.parse_args()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    print(environment(options))
    with tempfile.TemporaryDirectory() as name, FastServer(options.stream_writes) as server:
        if options.items and options.rounds:
            throughput(Path(name), server, options)
        if options.rss_items:
            memory(Path(name), server, options)


if __name__ == "__main__":
    main()
