"""Two nodes on this machine: the same command twice, each with its rank, over the loopback."""

import os
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from helpers.environments import REPO

NODES_SH = str(REPO / "scripts/nodes.sh")
# Of the whole network 127.0.0.0/8 this address, so that nothing works by the default one alone.
ADDRESS = "127.0.0.2"
ENVIRONMENT = {
    **os.environ,
    "GLOO_SOCKET_IFNAME": "lo",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "TQDM_DISABLE": "1",
    "DS_ACCELERATOR": "cpu",
    "CUDA_VISIBLE_DEVICES": "",
    "NPROC_PER_NODE": "1",
    "NODES_WAIT": "60",
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
    return port


def on_two_nodes(
    command: Sequence[str],
    folders: Sequence[Path] = (REPO, REPO),
    more: Mapping[str, str] | None = None,
) -> list["subprocess.CompletedProcess[str]"]:
    """What the command gives on each node. Two working folders are two file systems."""
    port = str(free_port())
    running = [
        subprocess.Popen(
            command,
            cwd=folder,
            env={
                **ENVIRONMENT,
                "NNODES": "2",
                "NODE_RANK": str(rank),
                "MASTER_ADDR": ADDRESS,
                "MASTER_PORT": port,
                **(more or {}),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, folder in enumerate(folders)
    ]
    # The first one writes less than a pipe holds before the second one has ended.
    ended = [(process, *process.communicate()) for process in running]
    return [
        subprocess.CompletedProcess(command, process.returncode, out, error)
        for process, out, error in ended
    ]
