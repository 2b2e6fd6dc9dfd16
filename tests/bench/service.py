"""The service under load and faults, and its rate next to the client's own on the same server.

    .envs/main/bin/python tests/bench/service.py soak [--seconds 600] [--clients 64]
    .envs/main/bin/python tests/bench/service.py rate [--base-url URL] [--rounds 5] [--limit 300]

soak: clients compare and rank without a pause, send bad pictures, go away early, and the server
behind (a mock) hangs, exits, breaks its answers off, answers 500 and 503, and is slow in turns.
Every request has to end within its time limit. Ends with status 1 where one did not, or where
memory grew by more than --max-growth after the warm-up.

rate: the same comparisons through the service and by scripts/image_stream_gpt.py, in turns. It
serves --model of the demo itself without --base-url; a mock at full speed is `--base-url mock`, one
of 40 requests a second `paced`.
"""

import argparse
import asyncio
import collections
import contextlib
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPO / "scripts"), str(REPO / "tests"), str(REPO / "tests/bench")]

import aiohttp  # noqa: E402
from helpers.server import MockServer  # noqa: E402
from helpers.service import Service, png  # noqa: E402

# The mock's faults by the caption of a request; every phase lasts PHASE_SECONDS.
FAULTS: list[tuple[str, dict[str, Any]]] = [
    ("healthy", {}),
    ("a third is answered 500", {"kind": "status", "status": 500}),
    ("a third hangs", {"kind": "hang"}),
    ("a third is cut short", {"kind": "cut"}),
    ("it exits, and is back after half of the phase", {}),
    ("a third is answered 503", {"kind": "status", "status": 503, "retry_after": "1"}),
    ("half a second for each, 16 at a time", {}),
    ("a third is not JSON", {"kind": "body", "body": "no JSON"}),
]
CAPTIONS = 30
# The pictures of a service's cache are bounded by 256 MiB: this many fill it.
FILLING, FILLING_SIZE = 180, 512


# --- soak -----------------------------------------------------------------------------------------


class Behind:
    """The mock server, which goes through its faults."""

    def __init__(self, phase_seconds: float) -> None:
        self.server, self._seconds = MockServer(), phase_seconds
        self.url = self.server.url
        self.phases = 0

    async def go_on(self) -> None:
        while True:
            name, fault = FAULTS[self.phases % len(FAULTS)]
            self.phases += 1
            faults = [fault | {"caption": f"caption {n}"} for n in range(0, CAPTIONS, 3)]
            slow = {"latency": 0.5, "slots": 16} if "16" in name else {"latency": 0.05}
            if "exits" in name:
                port = self.server.port
                self.server.stop()
                await asyncio.sleep(self._seconds / 2)
                self.server = await asyncio.to_thread(MockServer, port)
                await asyncio.to_thread(self.server.configure, **slow)
                await asyncio.sleep(self._seconds / 2)
            else:
                await asyncio.to_thread(
                    self.server.configure, **slow, faults=faults if fault else []
                )
                await asyncio.sleep(self._seconds)


class Tally:
    def __init__(self) -> None:
        self.outcomes: collections.Counter[tuple[str, str]] = collections.Counter()
        # Seconds that requests took beyond their limit (negative: within it).
        self.beyond: list[float] = []
        self.answered: list[float] = []
        self.broken: collections.Counter[str] = collections.Counter()


class Caller:
    """One client: it sends requests of several kinds, one after another."""

    def __init__(self, number: int, url: str, tally: Tally, pictures: list[str]) -> None:
        self._random, self._url, self._tally = random.Random(number), url, tally
        self._pictures = pictures

    async def go_on(self, session: aiohttp.ClientSession, until: float) -> None:
        while time.monotonic() < until:
            kind = self._random.choices(
                ("compare", "rank", "fresh", "bad", "gone", "chunked"), (70, 8, 8, 6, 4, 4)
            )[0]
            await self._ask(session, kind, limit=self._random.choice((2.0, 5.0, 8.0)))

    async def _ask(self, session: aiohttp.ClientSession, kind: str, limit: float) -> None:
        count = self._random.randint(3, 5) if kind == "rank" else 2
        candidates = self._random.sample(self._pictures, count)
        if kind == "fresh":
            candidates = [in_json(png(self._random.getrandbits(60), 96)) for _ in range(2)]
        if kind == "bad":
            candidates[1] = self._random.choice(
                ("http://127.0.0.1/a.png", "AAAA", candidates[0][:2000], "../a.png")
            )
        body = json.dumps({
            "prompt": f"caption {self._random.randrange(CAPTIONS)}", "candidates": candidates,
        }).encode()  # fmt: skip
        page = "rank" if kind == "rank" else "compare"
        headers = {"Content-Type": "application/json", "X-Time-Limit": f"{limit:g}"}
        began = time.monotonic()
        try:
            async with session.post(
                f"{self._url}/{page}", data=_parts(body) if kind == "chunked" else body,
                headers=headers,
                timeout=aiohttp.ClientTimeout(
                    self._random.uniform(0.01, 0.3) if kind == "gone" else limit + 30
                ),
            ) as answer:  # fmt: skip
                found = await answer.json()
        except TimeoutError:
            if kind == "gone":
                self._tally.outcomes[kind, "gone"] += 1
            else:
                self._tally.broken["no answer in 30 s beyond the limit"] += 1
            return
        except aiohttp.ClientError as error:
            self._tally.broken[type(error).__name__] += 1
            return
        took = time.monotonic() - began
        self._tally.beyond.append(took - limit)
        if answer.status == 200:
            self._tally.answered.append(took)
        word = "ok" if answer.status == 200 else f"{answer.status} {found['error']['type']}"
        self._tally.outcomes[kind, word] += 1


async def _parts(body: bytes) -> AsyncIterator[bytes]:
    """A body whose length is not said before."""
    for at in range(0, len(body), 5000):
        yield body[at : at + 5000]


def in_json(data: bytes) -> str:
    return b64encode(data).decode()


async def _fill(session: aiohttp.ClientSession, url: str, count: int) -> None:
    """Fill the cache of pictures, so that its growth is over."""

    async def one(number: int) -> None:
        pictures = [in_json(png(10**9 + 2 * number + side, FILLING_SIZE)) for side in range(2)]
        body = {"prompt": "a cat", "candidates": pictures}
        async with session.post(f"{url}/compare", json=body) as answer:
            await answer.read()

    for at in range(0, count, 8):
        await asyncio.gather(*(one(number) for number in range(at, min(at + 8, count))))


async def _soak(options: argparse.Namespace) -> dict[str, Any]:
    behind = Behind(options.phase_seconds)
    tally = Tally()
    memory: list[tuple[float, float]] = []
    flags = ("--max-queued", 32, "--max-working", 64, "--timeout", 6, "--orders", "both")
    with Service(behind.url, *flags) as service:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            await _fill(session, service.url, options.filling)
            began = time.monotonic()

            async def watch() -> None:
                while True:
                    found = await asyncio.to_thread(service.metric, "process_resident_memory_bytes")
                    memory.append((time.monotonic() - began, found / 2**20))
                    await asyncio.sleep(options.seconds / 120)

            pictures = [in_json(png(seed, 64)) for seed in range(100)]
            callers = [
                Caller(number, service.url, tally, pictures) for number in range(options.clients)
            ]
            others = [asyncio.create_task(work) for work in (behind.go_on(), watch())]
            until = began + options.seconds
            await asyncio.gather(*(caller.go_on(session, until) for caller in callers))
            seconds = time.monotonic() - began
            for task in others:
                task.cancel()
            # Cancelled in the middle of its exit, the mock may not be there.
            await asyncio.gather(*others, return_exceptions=True)
        left = {name: service.metric(f"cot_reward_{name}") for name in ("queued", "in_flight")}
        descriptors = service.metric("process_open_fds")
        service.stop()
        log = service.log
    behind.server.stop()
    warm = [mib for at, mib in memory if at > options.seconds / 5] or [memory[-1][1]]
    quarter = max(1, len(warm) // 4)
    return {
        "seconds": seconds, "phases": behind.phases,
        "outcomes": {f"{kind}: {word}": n for (kind, word), n in sorted(tally.outcomes.items())},
        "requests": sum(tally.outcomes.values()), "broken": dict(tally.broken),
        "late": sum(beyond > options.slack for beyond in tally.beyond),
        "most_beyond_limit": max(tally.beyond),
        "median_ok": statistics.median(tally.answered), "slowest_ok": max(tally.answered),
        "memory_first": memory[0][1], "memory_early": statistics.median(warm[:quarter]),
        "memory_late": statistics.median(warm[-quarter:]), "memory_most": max(m for _, m in memory),
        "left": left, "descriptors": descriptors, "tracebacks": log.count("Traceback"),
        "log_tail": log[-2000:],
    }  # fmt: skip


def soak(options: argparse.Namespace) -> int:
    found = asyncio.run(_soak(options))
    tail = found.pop("log_tail")
    growth = found["memory_late"] / found["memory_early"] - 1
    print(
        f"{date.today()}; {os.cpu_count()} cores, Python {platform.python_version()}; "
        f"{options.clients} clients, {found['seconds']:.0f} s, {found['phases']} phases\n"
    )
    print("| request: outcome | number |\n|---|---|")
    for name, number in found["outcomes"].items():
        print(f"| {name} | {number} |")
    print(
        f"\n{found['requests']} requests; without an answer: {found['broken'] or 'none'}; more "
        f"than {options.slack:g} s beyond their limit: {found['late']}; the latest came "
        f"{found['most_beyond_limit']:+.2f} s from its limit.\nAnswers (200): median "
        f"{found['median_ok']:.2f} s, slowest {found['slowest_ok']:.2f} s.\nMemory: "
        f"{found['memory_first']:.0f} MiB at the start, then {found['memory_early']:.0f}, "
        f"{found['memory_late']:.0f} at the end ({growth:+.1%}; most {found['memory_most']:.0f}). "
        f"Left at the end: {found['left']}; {found['descriptors']:.0f} open descriptors; "
        f"{found['tracebacks']} tracebacks."
    )
    print("RESULT" + json.dumps(found | {"growth": growth}), file=sys.stderr)
    bad = found["broken"] or found["late"] or found["tracebacks"] or any(found["left"].values())
    if bad or growth > options.max_growth:
        print(f"FAILED\n{tail}")
        return 1
    return 0


# --- rate -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def _behind(options: argparse.Namespace, folder: Path) -> Iterator[str]:
    if options.base_url in ("mock", "paced"):
        with MockServer() as server:
            # Paced: 40 requests a second, whatever else the machine does.
            server.configure(
                **({"latency": 0.4, "slots": 16} if "paced" in options.base_url else {})
            )
            yield server.url
    elif options.base_url:
        yield options.base_url
    else:
        from capacity import served

        with served(options.model, folder) as url:
            yield url


def by_client(options: argparse.Namespace, url: str, rows: Path) -> float:
    """Pairs a second of the client's own run into a fresh folder."""
    with tempfile.TemporaryDirectory() as name:
        command = [
            sys.executable, "scripts/image_stream_gpt.py", "--config",
            "configs/demo/inference.yaml", "--data", str(rows), "--image-root",
            options.image_root, "--media-root", options.image_root, "--template",
            options.template, "--base-url", url, "--out", f"{name}/out", "--num-samples", "1",
            "--temperature", "0", "--max-tokens", str(options.max_tokens), "--concurrency",
            str(options.concurrency), "--min-parsed", "0",
        ]  # fmt: skip
        done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"the client: exit {done.returncode}\n{done.stderr[-3000:]}")
        summary = json.loads(Path(name, "out/summary.json").read_text())
    return float(summary["responses_per_second"]) / 2


def by_service(options: argparse.Namespace, service: Service, bodies: list[bytes]) -> float:
    """Pairs a second through the service, asked by as many callers as keep it busy."""

    async def ask_all() -> float:
        left = iter(bodies)
        headers = {"Content-Type": "application/json", "X-Time-Limit": "600"}

        async def caller(session: aiohttp.ClientSession) -> None:
            for body in left:
                async with session.post(f"{service.url}/compare", data=body) as answer:
                    found = await answer.json()
                    # The mock has texts of every kind.
                    if answer.status != 200 and found["error"]["type"] not in _UNREADABLE:
                        sys.exit(f"the service: {answer.status} {found}")

        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, headers=headers) as session:
            began = time.monotonic()
            await asyncio.gather(*(caller(session) for _ in range(options.callers)))
            return len(bodies) / (time.monotonic() - began)

    return asyncio.run(ask_all())


_UNREADABLE = ("unparsed", "truncated")


def rate(options: argparse.Namespace) -> int:
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    records = json.loads((REPO / options.data).read_text())[: options.limit]
    bodies = [
        json.dumps({
            "prompt": record["prompt"],
            "candidates": [
                in_json((REPO / options.image_root / name).read_bytes())
                for name in record["images"]
            ],
        }).encode()
        for record in records
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        rows = Path(name, "rows.json")
        rows.write_text(json.dumps(records))
        url = stack.enter_context(_behind(options, Path(name)))
        flags = (
            "--template", options.template, "--max-tokens", options.max_tokens,
            "--concurrency", options.concurrency,
        )  # fmt: skip
        service = stack.enter_context(Service(url, *flags))
        arms: dict[str, Callable[[], float]] = {
            "client": lambda: by_client(options, url, rows),
            "service": lambda: by_service(options, service, bodies),
        }
        by_client(options, url, rows)  # warms the server up
        seen: dict[str, list[float]] = {arm: [] for arm in arms}
        for number in range(options.rounds):
            for arm in sorted(arms, reverse=bool(number % 2)):
                seen[arm].append(arms[arm]())
                print(f"round {number + 1}: {arm}: {seen[arm][-1]:.2f} pairs/s", file=sys.stderr)
        cpu = service.metric("process_cpu_seconds_total")
    ratios = [b / a for a, b in zip(seen["client"], seen["service"], strict=True)]
    print(
        f"{date.today()}; {os.cpu_count()} cores, Python {platform.python_version()}; "
        f"{len(bodies)} pairs in both orders, {options.rounds} rounds, {options.concurrency} "
        f"requests in flight, {options.callers} callers.\n\n"
        "| | pairs/s, median (range) |\n|---|---|"
    )
    for arm, values in seen.items():
        low, middle, high = min(values), statistics.median(values), max(values)
        print(f"| {arm} | {middle:.2f} ({low:.2f} to {high:.2f}) |")
    print(
        f"\nservice / client, round by round: {', '.join(f'{one:.3f}' for one in ratios)}; median "
        f"{statistics.median(ratios):.3f}. The service took "
        f"{1000 * cpu / (options.rounds * len(bodies)):.1f} ms of CPU a pair, its start included."
    )
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    modes = parser.add_subparsers(dest="mode", required=True)
    mode = modes.add_parser("soak")
    mode.add_argument("--seconds", type=float, default=600)
    mode.add_argument("--clients", type=int, default=64)
    mode.add_argument("--phase-seconds", type=float, default=10)
    mode.add_argument("--filling", type=int, default=FILLING, help="requests that fill the cache")
    mode.add_argument("--max-growth", type=float, default=0.1)
    mode.add_argument(
        "--slack", type=float, default=2.0, help="seconds to write and read an answer"
    )
    mode = modes.add_parser("rate")
    mode.add_argument("--base-url", help="a running server, mock or paced; its own without it")
    mode.add_argument("--model", default="runs/demo/seed0/stage3", help="what is served")
    mode.add_argument("--data", default="dataset/demo/dpo.json")
    mode.add_argument("--image-root", default="dataset/demo/images")
    mode.add_argument("--template", default="configs/demo/template.txt")
    mode.add_argument("--rounds", type=int, default=5)
    mode.add_argument("--limit", type=int, default=300, help="pairs of a run")
    mode.add_argument("--concurrency", type=int, default=64)
    mode.add_argument("--callers", type=int, default=64)
    mode.add_argument("--max-tokens", type=int, default=200)
    options = parser.parse_args()
    return {"soak": soak, "rate": rate}[options.mode](options)


if __name__ == "__main__":
    sys.exit(main())
