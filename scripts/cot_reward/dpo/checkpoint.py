"""The checkpoint that a run resumes from, found by `--resume_from_checkpoint`.

A run that was killed while saving leaves an incomplete checkpoint. A complete one is told by
`trainer_state.json`, which the Trainer writes last.
"""

import json
from pathlib import Path

from cot_reward.errors import UserError

_PREFIX = "checkpoint-"


def checkpoint_to_resume(flag: str | bool | None, output: Path) -> str | None:
    """The folder that the flag names, or with `true` the newest complete one below `output`.

    None without the flag. Raises UserError when there is no complete checkpoint.
    """
    given = str(flag or "")
    if given.lower() in ("", "false", "none"):
        return None
    if given.lower() != "true":
        if not _is_complete(Path(given)):
            raise UserError(f"--resume_from_checkpoint {given}: is not a complete checkpoint")
        return given
    steps = {path: path.name.removeprefix(_PREFIX) for path in output.glob(f"{_PREFIX}*")}
    complete = [path for path in steps if steps[path].isdecimal() and _is_complete(path)]
    if not complete:
        raise UserError(
            f"--resume_from_checkpoint true: there is no checkpoint in {output}; leave the flag out"
        )
    return str(max(complete, key=lambda path: int(steps[path])))


def _is_complete(folder: Path) -> bool:
    try:
        return "global_step" in json.loads((folder / "trainer_state.json").read_text())
    except (OSError, ValueError):
        return False
