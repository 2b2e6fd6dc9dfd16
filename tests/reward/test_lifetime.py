"""How a RewardModel ends: in forked processes, without a word, and beside calls."""

import gc
import os
import subprocess
import sys
import threading
import time

import pytest
from cot_reward import RewardModel
from helpers.environments import REPO
from PIL import Image

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
