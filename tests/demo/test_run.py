"""scripts/make_demo.py: its errors, its help, and the order of its work."""

import subprocess
import sys
from pathlib import Path

from helpers.environments import REPO


def test_an_unknown_key_names_the_nearest(tmp_path: Path) -> None:
    config = tmp_path / "world.yaml"
    config.write_text("held_out: 5\n")
    done = subprocess.run(
        [sys.executable, REPO / "scripts/make_demo.py", "--config", config],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "unknown key 'held_out'. Did you mean 'heldout'?" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_world_and_help_need_no_torch() -> None:
    code = "import sys, make_demo; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=REPO / "scripts", check=True)


def test_an_error_in_the_data_comes_before_torch_is_loaded(tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from cot_reward.demo.run import make_demo
from cot_reward.demo.settings import BaseSettings, WorldSettings
from cot_reward.errors import UserError
try:
    make_demo(WorldSettings(template=Path({str(tmp_path / "missing.txt")!r})), BaseSettings(), [])
except UserError as error:
    assert "missing.txt" in str(error)
    assert "torch" not in sys.modules
else:
    sys.exit("no error")
"""
    subprocess.run([sys.executable, "-c", code], cwd=REPO / "scripts", check=True)
