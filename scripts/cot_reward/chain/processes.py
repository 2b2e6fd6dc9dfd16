"""The processes of a chain: commands, and the one server that runs beside them.

Each runs in a process group of its own. A signal to the chain is passed on to the group once, and
`watchdog` ends the groups of a chain that was killed.
"""

import os
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from cot_reward.chain import watchdog
from cot_reward.errors import UserError


class StopChainError(Exception):
    """A signal asked the chain to end; `number` is the signal's."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def stop_on_signals() -> None:
    """Raise StopChainError on SIGINT, SIGTERM and SIGHUP."""

    def stop(number: int, _: object) -> None:
        raise StopChainError(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)


def shown(command: Sequence[str], extra: Mapping[str, str]) -> str:
    """The command as it can be typed into a shell."""
    # In double quotes the shell still fills in $PATH.
    assignments = [f'{name}="{value}"' for name, value in extra.items()]
    return " ".join([*assignments, shlex.join(command)])


def free_port() -> int:
    """A port that the system gives to nobody else soon: chains beside each other need their own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def serve_command(model: Path, port: int, flags: Sequence[str]) -> list[str]:
    return ["scripts/serve.sh", str(model), "--port", str(port), *flags]


class Processes:
    """Starts the commands of a chain, and ends them with it. Use it in a `with` block.

    `environment` is added to that of every command; `port` (None: a free one) and `serve_flags` are
    the server's.
    """

    def __init__(
        self, environment: Mapping[str, str], port: int | None, serve_flags: Sequence[str]
    ) -> None:
        self._environment, self._port, self._serve_flags = environment, port, serve_flags
        self._watchdog = subprocess.Popen(
            [sys.executable, watchdog.__file__], stdin=subprocess.PIPE, start_new_session=True,
            text=True, bufsize=1,
        )  # fmt: skip
        self._server: subprocess.Popen[str] | None = None
        self._model: Path | None = None
        self._url = ""

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop_server()
        assert self._watchdog.stdin is not None
        self._watchdog.stdin.close()
        self._watchdog.wait()

    def run(self, command: Sequence[str], extra: Mapping[str, str]) -> int:
        """Run a command to its end; its exit code. It gets each signal that the chain gets."""
        child = self._start(command, extra)
        stopped: StopChainError | None = None
        while True:
            try:
                code = child.wait()
                break
            except StopChainError as signalled:
                # A client answers the first signal by saving what is under way, a second one by
                # ending at once: so each is passed on once.
                stopped = signalled
                self._signal(child, signalled.number)
        self._ended(child)
        if stopped:
            raise stopped
        return code

    def serve(self, model: Path) -> str:
        """The address of a server for the model; a server of another model is stopped first.

        Raises UserError when it does not start.
        """
        if self._model == model and self._server and self._server.poll() is None:
            return self._url
        self.stop_server()
        command = serve_command(model, self._port or free_port(), self._serve_flags)
        print(f"+ {shlex.join(command)} &", flush=True)
        self._server = self._start(command, {}, stdout=subprocess.PIPE)
        assert self._server.stdout is not None
        self._url = self._server.stdout.readline().strip()
        if not self._url:
            self.stop_server()
            raise UserError(f"{model} could not be served; the reason stands above")
        self._model = model
        return self._url

    def stop_server(self) -> None:
        """Stop the server, if there is one, and wait for the end of its processes."""
        server, self._server, self._model = self._server, None, None
        if server is None:
            return
        self._signal(server, signal.SIGTERM)
        server.wait()
        assert server.stdout is not None
        server.stdout.close()
        self._ended(server)

    def _start(
        self, command: Sequence[str], extra: Mapping[str, str], stdout: int | None = None
    ) -> "subprocess.Popen[str]":
        path = os.environ.get("PATH", "")
        own = {name: value.replace("$PATH", path) for name, value in extra.items()}
        try:
            child = subprocess.Popen(
                command, env={**os.environ, **self._environment, **own}, stdout=stdout,
                stdin=subprocess.DEVNULL, text=True, process_group=0,
            )  # fmt: skip
        except OSError as error:
            raise UserError(f"{command[0]}: cannot be started: {error.strerror}") from None
        self._tell_watchdog(f"+{child.pid}")
        return child

    def _ended(self, child: "subprocess.Popen[str]") -> None:
        # What the command has left behind, if anything, ends with it.
        watchdog.end_groups({child.pid})
        self._tell_watchdog(f"-{child.pid}")

    def _tell_watchdog(self, line: str) -> None:
        assert self._watchdog.stdin is not None
        self._watchdog.stdin.write(line + "\n")

    @staticmethod
    def _signal(child: "subprocess.Popen[str]", number: int) -> None:
        if child.poll() is None:
            os.killpg(child.pid, number)
