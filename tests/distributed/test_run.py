"""Inference on a Ray cluster: the rows of the plain client, whatever is killed."""

import json
import os
import random
import re
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers.client_world import World
from helpers.environments import REPO
from helpers.ray_cluster import RAY_PYTHON, RayCluster, processes_with
from helpers.rows import read_lines
from helpers.server import MockServer

pytestmark = pytest.mark.slow

FILES = ("correct", "incorrect", "unusable", "failed", "duplicates")
FLAGS = ["--num-samples", 2, "--concurrency", 4]
SHARES, KILLS = 6, 20


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / f"{name}.jsonl").read_bytes() for name in FILES}


def started(world: World, *flags: object) -> subprocess.Popen[str]:
    # A file, which does not stop the driver when nobody reads it.
    with (world.out.parent / "driver.log").open("a") as log:
        return subprocess.Popen(
            [RAY_PYTHON, "scripts/infer_ray.py", *world.command(*FLAGS, *flags)[2:]],
            cwd=REPO, text=True, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip


def said(world: World) -> str:
    return (world.out.parent / "driver.log").read_text()


def eventually(found: Callable[[], object], driver: subprocess.Popen[str], world: World) -> None:
    until = time.monotonic() + 240
    while not found():
        assert driver.poll() is None, said(world)
        assert time.monotonic() < until, said(world)
        time.sleep(0.1)


def nothing_is_left(world: World) -> None:
    """No client or server of the run, of whatever parent."""
    until = time.monotonic() + 60
    while processes_with(f"{world.out}/"):
        assert time.monotonic() < until, "processes were left behind"
        time.sleep(0.05)


class Journals:
    """What the journals of the shares hold, and when each response was first seen there."""

    def __init__(self, out: Path) -> None:
        self._out, self._offsets, self._lines = out, Counter[Path](), 0
        self.seen: dict[int, float] = {}

    def look(self) -> int:
        """The number of lines so far."""
        found = []
        for path in self._out.glob("shares/share-*/journal.jsonl"):
            with path.open("rb") as file:
                file.seek(self._offsets[path])
                # A torn last line is cut off by the next client.
                whole = [line for line in file if line.endswith(b"\n")]
            self._offsets[path] += sum(map(len, whole))
            found += map(json.loads, whole)
        # Behind the reading: what is asked from now on had been answered before.
        now = time.time()
        for entry in found:
            if "seed" in entry:
                self.seen.setdefault(entry["seed"], now)
        self._lines += len(found)
        return self._lines


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with RayCluster(nodes=3) as running:
        yield running


@pytest.fixture
def world(tmp_path: Path, server: MockServer) -> World:
    """Comparisons with all that may be wrong, which a plain client was asked about."""
    world = World(tmp_path, server, count=120)
    # A duplicate, records that cannot be used, a missing picture, a caption that is refused.
    world.rows.append(world.rows[3])
    for place in (2, 40, 41):
        world.rows.insert(place, {"prompt": "no pictures", "images": [], "conversations": []})
    (world.media / "images/5a.png").unlink()
    server.configure(faults=[{"caption": "caption 7", "kind": "status", "status": 400}])
    assert world.call(*FLAGS, "--out", tmp_path / "plain") == 0
    return world


def test_whatever_is_killed_no_response_is_lost_or_asked_again(cluster, world, server, tmp_path):
    refused = {"caption": "caption 7", "kind": "status", "status": 400}
    with MockServer() as other:
        for mock in (server, other):
            mock.configure(latency=0.3, faults=[refused])
        flags = ["--cluster", cluster.address, "--shares", SHARES, "--workers", 3, "--attempts", 50,
                 "--base-url", server.url, other.url]  # fmt: skip
        driver, choice, journals = started(world, *flags), random.Random(0), Journals(world.out)
        for kill in range(KILLS):
            before = journals.look()
            eventually(lambda before=before: journals.look() > before, driver, world)
            eventually(lambda: cluster.kill_worker(choice), driver, world)
            if kill == KILLS // 3:
                cluster.remove_node()
            if kill == 2 * KILLS // 3:
                driver.send_signal(signal.SIGKILL)
                driver.wait()
                driver = started(world, *flags)
        assert driver.wait(240) == 0, said(world)
        asked = [entry for mock in (server, other) for entry in mock.log()]
    assert contents(world.out) == contents(tmp_path / "plain")
    plain = json.loads((tmp_path / "plain/summary.json").read_text())
    for name in ("account", "files", "failed_reasons", "accuracy", "duplicates"):
        assert world.summary[name] == plain[name], name
    # The bar ends at all that the journals hold.
    assert int(re.findall(r"\| (\d+)/", said(world))[-1]) == journals.look()
    again = [e for e in asked if e["when"] > journals.seen.get(e["seed"], float("inf"))]
    assert not again
    # The kills have hit: what was in flight was asked again.
    assert len(asked) > len({entry["seed"] for entry in asked})
    assert f"its worker on {socket.gethostname()} died" in said(world)
    nothing_is_left(world)


def test_a_stopped_run_goes_on_and_is_extended(cluster, world, server, tmp_path):
    refused = [{"caption": "caption 7", "kind": "status", "status": 400}]
    # Slow enough that the signal comes before the end, whatever else the machine does.
    server.configure(latency=1, faults=refused)
    flags = ["--cluster", cluster.address]
    driver = started(world, *flags, "--shares", 3)
    server.wait_for(20)
    driver.send_signal(signal.SIGINT)
    assert driver.wait(120) == 130, said(world)
    assert "stopped early; the same command continues" in said(world)
    # What was in flight was waited for.
    journaled = [
        row.get("seed")
        for path in world.out.glob("shares/share-*/journal.jsonl") for row in read_lines(path)
    ]  # fmt: skip
    asked = {entry["seed"] for entry in server.log() if entry["caption"] != "caption 7"}
    assert asked == set(journaled) - {None}
    server.configure(faults=refused)
    # The number of shares is remembered; more samples extend what is finished, too.
    more = ["--num-samples", 3]
    assert started(world, *flags, *more).wait(240) == 0, said(world)
    answered = len(set(journaled) - {None})
    later = [entry["n"] for entry in server.log() if entry["caption"] != "caption 7"]
    assert Counter(later) == {1: answered, 3: 2 * 118 - answered}
    assert world.call(*more, "--out", tmp_path / "plain") == 0
    assert contents(world.out) == contents(tmp_path / "plain")
    # Once more: nothing is left to ask, and that is no failure.
    server.configure()
    assert started(world, *flags, *more).wait(240) == 0, said(world)
    assert server.log() == []
    # What failed is asked again as often as the user says so.
    for fault in ("still", ""):
        server.configure(faults=refused if fault else [])
        assert started(world, *flags, *more, "--retry-failed").wait(240) == 0, said(world)
        assert {entry["caption"] for entry in server.log()} == {"caption 7"}
    assert "refused" not in world.summary["failed_reasons"]


def test_every_worker_serves_the_model_on_a_gpu_of_its_own(cluster, world, tmp_path):
    """What Ray takes for a GPU. A server that ends by itself is started again."""
    world.out = tmp_path / "served"
    # The mock's answers depend on seeds alone; the refused caption is no part of it.
    world.rows = [row for row in world.rows if row["prompt"] != "caption 7"]
    assert world.call(*FLAGS, "--out", tmp_path / "plain") == 0
    # The folder is in the command line, so that the test finds its own.
    serve = tmp_path / "serve_mock.py"
    serve.symlink_to(REPO / "tests/helpers/serve_mock.py")
    driver = started(
        world, "--out", world.out, "--cluster", cluster.address, "--gpus-per-server", 1,
        "--serve-command", f"{RAY_PYTHON} {serve} --latency 0.3", "--shares", 4,
    )  # fmt: skip
    journals = Journals(world.out)
    eventually(journals.look, driver, world)
    servers = processes_with(f"{serve} --latency 0.3 --port")
    # One for each, and by default one on every GPU.
    assert 1 <= len(servers) <= len(cluster.workers()) <= 3
    os.kill(servers[0], signal.SIGTERM)
    assert driver.wait(240) == 0, said(world)
    assert "its server ended by itself" in said(world)
    assert contents(world.out) == contents(tmp_path / "plain")
    nothing_is_left(world)
    assert not processes_with(f"{serve} --latency 0.3 --port")
