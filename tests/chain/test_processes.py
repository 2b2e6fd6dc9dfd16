"""The processes of a chain end with it, and get its signals once."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from cot_reward.chain.processes import Processes, shown
from helpers.environments import REPO

# Runs a command that starts a process of its own, as a launcher does; argv: the file to report to.
CHAIN = """
import sys
sys.path.insert(0, "scripts")
from cot_reward.chain.processes import Processes, StopChainError, stop_on_signals
stop_on_signals()
signals, pid = sys.argv[1:]
script = f"trap 'echo got >> {signals}; exit 3' INT TERM; sleep 1234 & echo $! > {pid}; wait"
try:
    with Processes({}, 8000, []) as processes:
        processes.run(["bash", "-c", script], {})
except StopChainError as stopped:
    sys.exit(128 + stopped.number)
"""


@pytest.fixture
def chain(tmp_path: Path) -> tuple[subprocess.Popen, Path, int]:
    """A running chain, the file in which its command notes signals, its grandchild's number."""
    signals, pid = tmp_path / "signals", tmp_path / "pid"
    running = subprocess.Popen(
        [sys.executable, "-c", CHAIN, str(signals), str(pid)], cwd=REPO, start_new_session=True
    )
    wait_for(lambda: pid.exists() and pid.read_text().strip())
    return running, signals, int(pid.read_text())


def wait_for(condition: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_the_command_once_and_nothing_is_left(chain, number) -> None:
    running, signals, grandchild = chain
    running.send_signal(number)
    assert running.wait(20) == 128 + number
    assert signals.read_text() == "got\n"
    assert is_gone(grandchild)


def test_a_killed_chain_leaves_no_process(chain) -> None:
    running, _, grandchild = chain
    running.kill()
    running.wait(20)
    wait_for(lambda: is_gone(grandchild))


def test_a_killed_process_group_leaves_no_process(chain) -> None:
    running, _, grandchild = chain
    os.killpg(running.pid, signal.SIGKILL)
    running.wait(20)
    wait_for(lambda: is_gone(grandchild))


def test_a_command_gets_its_environment_and_its_code_is_returned(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with Processes({"OURS": "1"}, 8000, []) as processes:
        code = processes.run(
            ["bash", "-c", f'echo "$OURS $OWN $PATH" > {out}; exit 7'],
            {"OWN": "2", "PATH": "first:$PATH"},
        )
    assert code == 7
    assert out.read_text() == f"1 2 first:{os.environ['PATH']}\n"


def test_a_shown_command_does_the_same_in_a_shell(tmp_path: Path) -> None:
    script = tmp_path / "say.sh"
    script.write_text('#!/bin/sh\necho "$1 $MARK"\n')
    script.chmod(0o755)
    line = shown(["say.sh", '{"image":2} $HOME'], {"PATH": f"{tmp_path}:$PATH", "MARK": "a b"})
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
    assert done.stdout == '{"image":2} $HOME a b\n'
