"""The project's folders and its environments."""

import json
import subprocess
from pathlib import Path
from typing import Any

REPO = Path(__file__).parents[2]
PYTHON = REPO / ".envs/dev/bin/python"


def run_in(environment: str, code: str, *arguments: Path | str) -> dict[str, Any]:
    """What a script prints after RESULT, in one of the project's environments."""
    done = subprocess.run(
        [REPO / ".envs" / environment / "bin/python", "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=REPO,
        env={"HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin", "HOME": "/tmp"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result: dict[str, Any] = json.loads(done.stdout.split("RESULT")[1])
    return result
