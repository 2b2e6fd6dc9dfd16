"""scripts/serve.sh when it cannot serve: it says why, ends non-zero and leaves no process behind.

A start with a real model is part of the end-to-end test.
"""

import http.server
import os
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import psutil
import pytest
from cot_reward.chain.processes import free_port
from helpers.environments import REPO
from helpers.serving import needs_vllm

pytestmark = pytest.mark.slow

SERVE = str(REPO / "scripts/serve.sh")


def serve(*arguments: object, folder: Path, seconds: float = 300) -> subprocess.CompletedProcess:
    return subprocess.run(
        [SERVE, *map(str, arguments)], env=os.environ | {"SERVE_LOG": str(folder / "serve.log")},
        capture_output=True, text=True, check=False, timeout=seconds,
    )  # fmt: skip


def processes_about(text: str) -> list[str]:
    """Command lines, of any process, that name the text."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        line = " ".join(process.info["cmdline"] or [])
        if text in line and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(line)
    return found


@pytest.fixture
def garbage(tmp_path):
    """A model directory whose configuration no program can read."""
    model = tmp_path / "garbage-model"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "no such thing", "architectures": ')
    return model


@pytest.mark.parametrize("arguments", [[], ["--help"], ["--port", "1"]])
def test_without_a_directory_it_shows_its_use(tmp_path, arguments):
    done = serve(*arguments, folder=tmp_path)
    assert done.returncode == 2
    assert "scripts/serve.sh runs/stage1 [--port 8000]" in done.stderr
    assert done.stdout == ""


def test_a_missing_directory_is_named(tmp_path):
    for model in (tmp_path / "nowhere", tmp_path):
        done = serve(model, folder=tmp_path)
        assert done.returncode == 2
        assert f"error: {model}/config.json: no such file" in done.stderr
        assert done.stdout == ""


def test_a_result_that_is_not_there_is_no_name_on_the_hub(tmp_path):
    done = serve("runs/no-such-stage", folder=tmp_path)
    assert done.returncode == 2
    assert "error: runs/no-such-stage/config.json: no such file" in done.stderr
    assert "ORGANISATION/NAME of a model on the Hugging Face hub" in done.stderr


def test_an_adapter_is_told_what_to_do_with(tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    done = serve(adapter, folder=tmp_path)
    assert done.returncode == 2
    assert f"error: {adapter} is an adapter" in done.stderr
    assert f"--enable-lora --lora-modules NAME={adapter}" in done.stderr


@needs_vllm
@pytest.mark.parametrize("form", ["--port {}", "--port={}"])
def test_a_taken_port_is_named_and_its_owner_left_alone(tmp_path, garbage, form):
    with socket.create_server(("127.0.0.1", 0)) as owner:
        port = owner.getsockname()[1]
        done = serve(garbage, *form.format(port).split(), folder=tmp_path)
        assert done.returncode == 2
        assert f"error: port {port} is taken; choose another with --port" in done.stderr
        assert processes_about(str(garbage)) == []
        socket.create_connection(("127.0.0.1", port), 1).close()


@needs_vllm
def test_a_server_that_cannot_start_shows_its_last_lines(tmp_path, garbage):
    done = serve(garbage, "--port", free_port(), folder=tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "error: the server ended before it answered" in done.stderr
    last = (tmp_path / "serve.log").read_text().splitlines()[-1]
    assert last in done.stderr
    assert "Error" in done.stderr
    assert processes_about(str(garbage)) == []


def starting(model: Path, port: int, folder: Path) -> subprocess.Popen:
    """serve.sh once its server has started, long before that could answer."""
    running = subprocess.Popen(
        [SERVE, str(model), "--port", str(port)],
        env=os.environ | {"SERVE_LOG": str(folder / "serve.log")},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    until = time.monotonic() + 60
    while not any("api_server" in line for line in processes_about(str(model))):
        assert time.monotonic() < until
        time.sleep(0.02)
    return running


class OtherServer(http.server.BaseHTTPRequestHandler):
    """A server of another model, which is healthy."""

    def do_GET(self):
        body = b'{"data": [{"id": "another-model"}]}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@needs_vllm
def test_another_server_that_comes_first_is_not_taken_for_its_own(tmp_path, garbage):
    port = free_port()
    running = starting(garbage, port, tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", port), OtherServer) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        out, error = running.communicate(timeout=300)
        other.shutdown()
    assert running.returncode == 1
    assert out == ""
    assert "error: the server ended before it answered" in error


@needs_vllm
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_it_starts_leaves_no_process(tmp_path, garbage, number, code):
    running = starting(garbage, free_port(), tmp_path)
    running.send_signal(number)
    running.communicate(timeout=30)
    assert running.returncode == code
    assert processes_about(str(garbage)) == []
