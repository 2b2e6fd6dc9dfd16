"""What a worker does on its machine: it runs the client about one share after another.

The client is a process of its own, the same as by hand: Ctrl-C waits for what is in flight, and
its memory goes with it. It ends with the worker, and so does the server that the worker started.
"""

import asyncio
import contextlib
import fcntl
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cot_reward.errors import UserError
from cot_reward.store import lock

CLIENT = Path(__file__).parents[2] / "image_stream_gpt.py"
# A client on a machine that lost its connection may write on until its own Ray ends it, which
# takes a minute or two. The next one waits for it.
LOCK_SECONDS = 300.0
# So much of what a client wrote is shown when it fails.
SHOWN_CHARACTERS = 2000
SERVER_END_SECONDS = 20.0

# Runs a command that gets a signal when the process that starts it ends, however it ends.
_ENDS_WITH_US = (
    "import ctypes, os, sys; number, parent, *command = sys.argv[1:]; "
    "ctypes.CDLL(None).prctl(1, int(number)); "
    "os.getppid() == int(parent) and os.execvp(command[0], command)"
)


@dataclass(frozen=True)
class Work:
    """What all workers of a run need to know.

    `folder` has the shares (see `plan`) and `token` is in its lock's file. Paths are relative to
    `directory`. `serve`: the command of the worker's own server; empty: the servers of `config`.
    """

    directory: Path
    folder: Path
    token: str
    config: Path
    shares: int
    api_key_env: str
    serve: Sequence[str] = ()
    gpus: int = 0


@dataclass(frozen=True)
class Attempt:
    """How the client about a share ended. `finished`: its summary is there.

    `code` is None when its server ended first. `said` is what it wrote last.
    """

    finished: bool
    code: int | None
    said: str


class Worker:
    """Its methods run in one event loop, so that `stop` comes through while a share is asked."""

    def __init__(self) -> None:
        self._work: Work
        self._url = ""
        self._server: asyncio.subprocess.Process | None = None
        self._client: asyncio.subprocess.Process | None = None
        self._stopped = False

    async def start(self, work: Work, name: str) -> str:
        """Get ready; returns where, or raises UserError when this machine cannot be used.

        `name` is for the server's logs.
        """
        self._work = work
        host = socket.gethostname()
        try:
            os.chdir(work.directory)
        except OSError as error:
            raise UserError(f"{host}: {work.directory}: {error.strerror} (shared?)") from None
        check_shared(work.folder / "driver.lock", work.token, host)
        if work.serve:
            await self._serve(work, host, name)
        return host

    async def _serve(self, work: Work, host: str, name: str) -> None:
        """Start the server, and wait until it answers. Raises UserError."""
        log = work.folder / f"server-{name}.log"
        environment = dict(os.environ) | {"SERVE_LOG": str(log.with_suffix(".vllm.log"))}
        if not work.gpus:
            # Ray limits the threads to the CPUs of a worker, which has one.
            environment.pop("OMP_NUM_THREADS", None)
        with log.open("ab") as file:
            self._server = await _start(
                [*work.serve, "--port", str(_free_port())], signal.SIGTERM, environment,
                stdout=subprocess.PIPE, stderr=file,
            )  # fmt: skip
        assert self._server.stdout is not None
        self._url = (await self._server.stdout.readline()).decode().strip()
        if not self._url:
            code = await self._server.wait()
            raise UserError(
                f"{host}: {shlex.join(work.serve)} ended before it answered (exit code {code}); "
                f"{_end_of(log, 0)}"
            )

    async def ask(self, number: int, api_key: str) -> Attempt:
        """Run the client about a share until it ends."""
        work, out = self._work, self._work.folder / f"share-{number}"
        log = work.folder / f"share-{number}.log"
        await _wait_for_lock(out / "journal.jsonl")
        command = [
            sys.executable, str(CLIENT), "--config", str(work.config),
            "--shard", f"{number}/{work.shares}", "--out", str(out),
            *(["--base-url", self._url] if self._url else []),
        ]  # fmt: skip
        # The driver has the bar; bars of clients would fill their logs.
        environment = dict(os.environ) | {work.api_key_env: api_key, "TQDM_DISABLE": "1"}
        with log.open("ab") as file:
            began = file.tell()
            if self._stopped:
                return Attempt(False, 130, "")
            # Killed, so that the next worker finds the journal's lock free.
            self._client = client = await _start(
                command, signal.SIGKILL, environment, stdout=file, stderr=file
            )
        ends = [asyncio.ensure_future(client.wait())]
        if self._server:
            ends.append(asyncio.ensure_future(self._server.wait()))
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if client.returncode is None:
            # It would wait for a server that nobody starts again.
            client.kill()
            await client.wait()
            assert self._server is not None
            code = self._server.returncode
            return Attempt(False, None, f"its server ended by itself (exit code {code})")
        for end in ends:
            end.cancel()
        finished = (out / "summary.json").exists()
        return Attempt(finished, client.returncode, _end_of(log, began))

    async def stop(self) -> None:
        """As Ctrl-C for the client: it waits for what is in flight."""
        self._stopped = True
        if self._client and self._client.returncode is None:
            self._client.send_signal(signal.SIGINT)

    async def end(self) -> None:
        """End the server, and wait until it is gone."""
        if self._server and self._server.returncode is None:
            self._server.terminate()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._server.wait(), SERVER_END_SECONDS)


def check_shared(path: Path, token: str, host: str) -> None:
    """Raises UserError unless `path` is the driver's lock file, whose lock holds here, too.

    Without it two clients could write into one journal, or nobody would find what was written.
    """
    try:
        with path.open("r+", encoding="utf-8") as file:
            found = file.read()
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                held = False
            except BlockingIOError:
                held = True
    except OSError as error:
        raise UserError(
            f"{host}: {path}: {error.strerror}; --out must be on storage that all machines share"
        ) from None
    if found != token:
        raise UserError(
            f"{host}: {path} is not the driver's; --out must be on storage that all machines share"
        )
    if not held:
        raise UserError(
            f"{host}: {path}: locks do not reach from machine to machine on this file system "
            "(Lustre: mount it with flock; NFS: without nolock, local_lock)"
        )


async def _start(
    command: Sequence[str], number: int, environment: Mapping[str, str], **streams: object
) -> asyncio.subprocess.Process:
    """Start a command that gets the signal `number` when this process ends."""
    wrapper = [sys.executable, "-ISc", _ENDS_WITH_US, str(number), str(os.getpid())]
    return await asyncio.create_subprocess_exec(
        *wrapper,
        *command,
        env=environment,
        stdin=subprocess.DEVNULL,
        **streams,  # type: ignore
    )


async def _wait_for_lock(path: Path) -> None:
    """Wait while a client that was left behind has the journal. If it stays, the next says so."""
    until = time.monotonic() + LOCK_SECONDS
    while path.exists() and time.monotonic() < until:
        with path.open("a") as file, contextlib.suppress(UserError):
            lock(file, path, "", "")
            return
        await asyncio.sleep(0.2)


def _end_of(log: Path, began: int) -> str:
    with log.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(began, file.tell() - SHOWN_CHARACTERS))
        return file.read().decode(errors="replace").strip()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
