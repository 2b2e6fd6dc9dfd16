"""A Ray cluster of several nodes on this machine, in a process of its own:

    with RayCluster(nodes=3) as cluster:
        command = [RAY_PYTHON, "scripts/infer_ray.py", "--cluster", cluster.address, ...]
        cluster.kill_worker(random.Random(0))
        cluster.remove_node()

It runs in the environment of Ray, which the tests themselves are not in.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

REPO = Path(__file__).parents[2]
RAY_PYTHON = REPO / ".envs/ray/bin/python"


class RayCluster:
    """Every node has room for one worker, which may ask for a GPU: Ray believes what it is told."""

    def __init__(self, nodes: int) -> None:
        # The paths of Ray's sockets must be short.
        self._folder = tempfile.mkdtemp(prefix="ray-")
        self._process = subprocess.Popen(
            [RAY_PYTHON, __file__, str(nodes), self._folder],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.address = self._answer()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        answer = self._process.stdout.readline().strip()
        assert answer, "the cluster did not start"
        return answer

    def remove_node(self) -> None:
        """Kill the processes of a node that has no head."""
        assert self._process.stdin is not None
        print("remove", file=self._process.stdin, flush=True)
        assert self._answer() == "removed"

    def workers(self) -> list[int]:
        """The processes of the actors."""
        return [
            number for number in descendants(self._process.pid)
            if command_line(number).startswith("ray::Worker")
        ]  # fmt: skip

    def kill_worker(self, choice: random.Random) -> bool:
        """Kill -9 one of the actors; False when there is none."""
        found = self.workers()
        if not found:
            return False
        try:
            os.kill(choice.choice(found), signal.SIGKILL)
        except ProcessLookupError:
            return False
        return True

    def __enter__(self) -> "RayCluster":
        return self

    def __exit__(self, *exception: object) -> None:
        every = descendants(self._process.pid)
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(60)
        finally:
            self._process.kill()
            for number in every:
                # Only what has stayed behind; its number is not given to another process so soon.
                if "ray" in command_line(number):
                    os.kill(number, signal.SIGKILL)
            shutil.rmtree(self._folder, ignore_errors=True)


def descendants(process: int) -> Iterator[int]:
    try:
        tasks = Path(f"/proc/{process}/task").glob("*/children")
        children = [int(number) for task in tasks for number in task.read_text().split()]
    except OSError:
        return
    for child in children:
        yield child
        yield from descendants(child)


def processes_with(text: str) -> list[int]:
    """All processes of this machine that have this in their command line."""
    numbers = [int(folder.name) for folder in Path("/proc").iterdir() if folder.name.isdecimal()]
    return [number for number in numbers if text in command_line(number)]


def command_line(process: int) -> str:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def _serve(nodes: int, folder: str) -> None:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Ray notes the last cluster of a machine in a folder that it makes only in other ways to start.
    os.environ["RAY_TMPDIR"] = folder
    Path(folder, "ray").mkdir()
    from ray.cluster_utils import Cluster

    # Another address of the loopback: Ray replaces 127.0.0.1 by the machine's own.
    node = {
        "num_cpus": 1, "num_gpus": 1, "object_store_memory": 80 * 2**20,
        "node_ip_address": "127.0.0.2", "include_dashboard": False, "include_log_monitor": False,
    }  # fmt: skip
    head = node | {"temp_dir": folder, "gcs_server_port": 0}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(nodes - 1):
        cluster.add_node(**node)
    print(cluster.address, flush=True)
    for _ in sys.stdin:
        cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
        print("removed", flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    _serve(int(sys.argv[1]), sys.argv[2])
