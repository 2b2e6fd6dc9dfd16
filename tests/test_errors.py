"""Mistakes of the user: one message, an exit code, and the nearest valid name."""

import subprocess
import sys
from pathlib import Path

import pytest
from cot_reward import errors
from cot_reward.errors import nearest

SCRIPTS = Path(errors.__file__).parent.parent


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        ("return 3", 3, ""),
        ("raise errors.UserError('x.json:7: bad')", 2, "error: x.json:7: bad\n"),
        ("raise KeyboardInterrupt", 130, ""),
        ("raise BrokenPipeError", 1, ""),
    ],
)
def test_run_script_turns_the_users_mistakes_into_one_message(body, code, message):
    program = f"from cot_reward import errors\ndef main():\n {body}\nerrors.run_script(main)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=SCRIPTS, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (code, message)


def test_a_mistake_of_ours_keeps_its_traceback():
    program = "from cot_reward import errors\nerrors.run_script(lambda: 1 // 0)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=SCRIPTS, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr


def test_the_nearest_name_is_proposed_when_it_is_close():
    assert nearest("num_sample", ["num_samples", "seed"]) == " Did you mean 'num_samples'?"
    assert nearest("zzz", ["num_samples", "seed"]) == ""
    assert nearest("seed", []) == ""
