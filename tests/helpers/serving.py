"""Real vLLM servers, started by scripts/serve.sh."""

import os
import signal
import subprocess
from pathlib import Path

import pytest
from cot_reward.chain.processes import free_port

from helpers.environments import REPO

BUILT = [REPO / f".envs/{name}/bin/python" for name in ("serve", "serve-cpu")]
needs_vllm = pytest.mark.skipif(
    not any(python.exists() for python in BUILT), reason="no serving environment: make envs"
)


class RealServer:
    """vLLM with a model of the demo's size, by scripts/serve.sh with further flags of vLLM."""

    def __init__(self, model: Path, media: Path, *flags: str, log: Path | None = None) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self._command = [
            "scripts/serve.sh", model, "--port", self.port, "--max-num-seqs", 32,
            "--limit-mm-per-prompt", '{"image":2}', "--allowed-local-media-path", media,
            *flags,
        ]  # fmt: skip
        self._log = log or media.parent / "serve.log"

    def start(self) -> None:
        # A proxy of the environment does not know this machine's own addresses.
        proxy = {"http_proxy": "http://127.0.0.1:9"}
        self._process = subprocess.Popen(
            list(map(str, self._command)), cwd=REPO, stdout=subprocess.PIPE, text=True,
            env=os.environ | proxy | {"SERVE_LOG": str(self._log)},
        )  # fmt: skip
        assert self._process.stdout is not None
        assert self._process.stdout.readline().strip() == self.url, self._log.read_text()[-3000:]

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(60)

    def configure(self) -> None:
        """A real server has no faults on demand."""
