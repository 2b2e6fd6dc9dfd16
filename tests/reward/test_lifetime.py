"""How a RewardModel begins and ends: with its server, by its caller, in forked processes."""

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from cot_reward import Judgement, RewardModel
from cot_reward.client import outage
from cot_reward.errors import UserError
from helpers.environments import REPO
from helpers.pictures import grey
from helpers.server import MockServer
from PIL import Image

CAPTION = "a cat"
FORKING = """
import os, sys
from cot_reward import RewardModel
from PIL import Image
model = RewardModel(sys.argv[1])
items = "x", Image.new("RGB", (50, 50), "white"), Image.new("RGB", (50, 50))
assert model.compare(*items).answer == 1
if not os.fork():
    try:
        model.compare(*items)
    except RuntimeError as error:
        print(error, flush=True)
    sys.exit(0)
assert os.wait()[1] == 0
assert model.compare(*items).answer == 1
"""


def test_a_forked_process_is_told_and_ends(server):
    server.configure(sees=True)
    done = subprocess.run(
        [sys.executable, "-c", FORKING, server.url], env=os.environ | {"PYTHONPATH": "scripts"},
        cwd=REPO, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "used before the process was forked; make one in each process" in done.stdout


def test_a_model_that_is_let_go_takes_its_thread_with_it(server):
    server.configure(sees=True)

    def threads() -> int:
        return sum(one.name.startswith("cot_reward") for one in threading.enumerate())

    before = threads()
    for _ in range(3):
        RewardModel(server.url).compare("x", Image.new("L", (50, 50)), Image.new("L", (50, 50), 9))
    until = time.monotonic() + 30
    while threads() > before:
        gc.collect()
        assert time.monotonic() < until
        time.sleep(0.05)


def test_calls_beside_the_end_are_answered_or_refused(server):
    server.configure(sees=True)
    for _ in range(5):
        model, ended = RewardModel(server.url), []

        def use(model=model, ended=ended):
            white, black = Image.new("L", (50, 50), 255), Image.new("L", (50, 50))
            try:
                for _ in range(50):
                    model.compare("x", white, black)
            except BaseException as error:
                ended.append(error)

        callers = [threading.Thread(target=use, daemon=True) for _ in range(4)]
        for caller in callers:
            caller.start()
        time.sleep(0.05)
        model.close()
        for caller in callers:
            caller.join(30)
            assert not caller.is_alive()
        with pytest.raises(RuntimeError, match="closed"):
            model.compare("x", Image.new("L", (50, 50)), Image.new("L", (50, 50), 9))


def test_no_server(server):
    with pytest.raises(UserError, match="no answer"), RewardModel("http://127.0.0.1:9/v1"):
        pass
    model = RewardModel("http://127.0.0.1:9/v1")
    with pytest.raises(UserError, match="no answer"):
        model.compare(CAPTION, grey(1), grey(2))
    model.close()
    model.close()
    with pytest.raises(RuntimeError, match="closed"):
        model.compare(CAPTION, grey(1), grey(2))


def test_a_server_that_goes_away_and_comes_back():
    with MockServer() as first:
        first.configure(sees=True, faults=[{"kind": "exit", "caption": "last"}])
        port = first.port
        model = RewardModel(first.url, max_pause=0.3, max_attempts=1, concurrency=1)
        items = [("fine", grey(9), grey(2)), ("last", grey(9), grey(2)), ("more", grey(9), grey(2))]
        found = model.compare_many(items)
    assert found[0].answer == 1
    assert [one.reason for one in found[1:]] == ["server_gone"] * 2
    with pytest.raises(UserError):
        model.compare(*items[0])
    with MockServer(port) as second:
        second.configure(sees=True)
        assert model.compare(*items[0]).answer == 1
        model.close()


def test_another_model_is_asked_and_said(monkeypatch, caplog):
    monkeypatch.setattr(outage, "MAX_OTHER_MODEL_SECONDS", 0.5)
    with MockServer() as server, RewardModel(server.url, orders="given") as model:
        server.configure(sees=True)
        assert model.compare(CAPTION, grey(200), grey(50)).answer == 1
        server.configure(models=["next"], faults=[{"kind": "status", "status": 404}])
        found = model.compare(CAPTION, grey(201), grey(50))
        assert (found.reason, "it lists next, not mock" in found.detail) == ("server_gone", True)
        server.configure(models=["next"], sees=True)
        assert model.compare(CAPTION, grey(202), grey(50)).answer == 1
        assert model.served["model"] == "next"
    assert "other weights answer now: next, and mock before" in caplog.text


def test_a_call_that_is_given_up_frees_its_place(server):
    server.configure(sees=True, faults=[{"kind": "hang", "caption": "slow"}])

    async def use():
        async with RewardModel(server.url, concurrency=1, orders="given") as model:
            slow = asyncio.create_task(model.acompare("slow", grey(9), grey(2)))
            await asyncio.to_thread(server.wait_for, 1)
            slow.cancel()
            with pytest.raises(asyncio.CancelledError):
                await slow
            return await model.acompare(CAPTION, grey(9), grey(2))

    assert asyncio.run(use()).answer == 1


def test_closing_ends_what_is_in_flight(server):
    server.configure(faults=[{"kind": "hang"}])
    model = RewardModel(server.url).open()
    ended = []

    def use():
        try:
            ended.append(model.compare(CAPTION, grey(9), grey(2)))
        except BaseException as error:
            ended.append(error)

    thread = threading.Thread(target=use)
    thread.start()
    server.wait_for(2)
    model.close()
    thread.join(30)
    assert not thread.is_alive()
    assert len(ended) == 1
    assert not isinstance(ended[0], Judgement)


def test_a_model_that_is_left_open_ends_with_its_program(sees, server, tmp_path):
    code = f"""
import signal
# What a shell starts in the background ignores it, and so does what this starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
from cot_reward import RewardModel
from PIL import Image
model = RewardModel({sees.url!r})
print(model.compare("x", Image.new("RGB", (50, 50), "white"), Image.new("RGB", (50, 50))).answer)
"""
    command = [sys.executable, "-W", "always", "-c", code]
    env = os.environ | {"PYTHONPATH": str(REPO / "scripts")}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")
    # An interrupt ends it while it waits.
    server.configure(faults=[{"kind": "hang"}])
    waiting = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)
    server.wait_for(1)
    waiting.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in waiting.communicate(timeout=60)[1]
