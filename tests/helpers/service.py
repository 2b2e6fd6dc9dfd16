"""The service as a user runs it, in a process of its own, and a caller of it."""

import base64
import contextlib
import io
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from helpers.environments import REPO


def png(seed: int = 0, size: int = 48) -> bytes:
    """A small picture; other seeds give other pictures."""
    buffer = io.BytesIO()
    pixels = random.Random(seed).randbytes(size * size * 3)
    Image.frombytes("RGB", (size, size), pixels).save(buffer, "PNG")
    return buffer.getvalue()


def in_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def data_url(data: bytes) -> str:
    return f"data:image/png;base64,{in_base64(data)}"


def asked(caption: str = "a cat", *candidates: object, **fields: object) -> dict[str, Any]:
    """The body of a request; without candidates about two small pictures."""
    return {
        "prompt": caption, "candidates": list(candidates) or [data_url(png(0)), data_url(png(1))],
    } | fields  # fmt: skip


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> tuple[int, str]:
        """Status and type of an error, which has a sentence."""
        error = self.json["error"]
        assert len(error["message"]) > 10, error
        return self.status, error["type"]


class Service:
    """scripts/serve_reward.py before a server behind; `log` is what it has written to stderr."""

    def __init__(self, behind: str, *flags: object, env: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [
                sys.executable, "scripts/serve_reward.py", "--base-url", behind, "--port", "0",
                *map(str, flags),
            ],
            cwd=REPO, env=os.environ | (env or {}), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        self.log = ""
        # Read all the time: a full pipe would stop the process.
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()
        assert self.url, self.log
        self.port = int(self.url.rpartition(":")[2])
        self._wait_until_up()

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log += line

    def _wait_until_up(self) -> None:
        until = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError):
                self.get("/health")
                return
            assert time.monotonic() < until, self.log
            time.sleep(0.05)

    def call(
        self, path: str, data: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        request = urllib.request.Request(self.url + path, data, dict(headers or {}))
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return Answer(answer.status, answer.headers, answer.read())
        except urllib.error.HTTPError as error:
            return Answer(error.code, error.headers, error.read())

    def post(self, path: str, body: object, **headers: object) -> Answer:
        """`headers` are names with underscores: x_time_limit=1."""
        named = {name.replace("_", "-"): str(value) for name, value in headers.items()}
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.call(path, data, {"Content-Type": "application/json"} | named)

    def get(self, path: str) -> Answer:
        return self.call(path)

    def metric(self, name: str, **labels: str) -> float:
        """The value of a sample; 0 for one that is not there yet."""
        text = self.get("/metrics").body.decode()
        return next(
            (
                sample.value
                for family in text_string_to_metric_families(text)
                for sample in family.samples
                if sample.name == name and labels.items() <= sample.labels.items()
            ),
            0.0,
        )

    def wait_for(self, name: str, value: float, **labels: str) -> None:
        until = time.monotonic() + 30
        while self.metric(name, **labels) != value:
            assert time.monotonic() < until, self.get("/metrics").body.decode()
            time.sleep(0.02)

    def connection(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)

    def stop(self) -> int:
        """Ask it to end; its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self) -> int:
        status = self.process.wait(60)
        self._reader.join(10)
        return status

    def __enter__(self) -> "Service":
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.kill()
        self.wait()
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.process.stdout.close()
        self.process.stderr.close()


def head(length: int | None, **headers: object) -> bytes:
    """The head of a request by hand; `length` None: a chunked body follows."""
    framing = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    more = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return (
        f"POST /compare HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{framing}\r\n"
        f"{more}\r\n"
    ).encode()
