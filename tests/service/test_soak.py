"""Many callers, and a server behind that breaks in every way: a short run of the bench."""

import json
import subprocess
import sys

import pytest
from helpers.environments import REPO


@pytest.mark.slow
def test_every_request_has_an_answer_whatever_happens_behind():
    flags = "--seconds 24 --phase-seconds 3 --clients 16 --filling 4 --slack 60 --max-growth 0.5"
    done = subprocess.run(
        [sys.executable, "tests/bench/service.py", "soak", *flags.split()],
        cwd=REPO, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    found = json.loads(done.stderr.rpartition("RESULT")[2])
    assert found["phases"] >= 8
    assert found["requests"] > 100
    assert not found["broken"]
    outcomes = found["outcomes"]
    for expected in ("compare: ok", "rank: ok", "compare: 504 time_limit", "gone: gone"):
        assert outcomes.get(expected), outcomes
