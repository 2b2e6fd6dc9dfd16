"""The checkpoint that a run resumes from, found by `--resume_from_checkpoint`.

`run.json` is written last into a checkpoint. It has what the checkpoint belongs to (see `identity`)
and the sizes of the checkpoint's files, so that an incomplete checkpoint, and one whose files were
cut or removed later, is told from a complete one.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cot_reward.errors import UserError
from cot_reward.store import read_json, write_json

RECORD_FILE = "run.json"
_PREFIX = "checkpoint-"


def checkpoint_to_resume(flag: str | bool | None, output: Path) -> str | None:
    """The folder that the flag names, or with `true` the newest complete one below `output`.

    None without the flag. Raises UserError when there is no complete checkpoint.
    """
    given = str(flag or "")
    if given.lower() in ("", "false", "none"):
        return None
    if given.lower() != "true":
        if fault := _fault(Path(given)):
            raise UserError(
                f"--resume_from_checkpoint {given}: is not a complete checkpoint: {fault}"
            )
        return given
    faults = {path: _fault(path) for path in checkpoints(output)}
    for path, fault in faults.items():
        if not fault:
            return str(path)
    listed = "; ".join(f"{path.name} is not complete: {fault}" for path, fault in faults.items())
    why = f" ({listed})" if listed else ""
    raise UserError(
        f"--resume_from_checkpoint true: there is no checkpoint in {output}{why}; "
        "leave the flag out"
    )


def checkpoints(output: Path) -> list[Path]:
    """The folders of checkpoints below `output`, complete or not; the last step comes first."""
    steps = {path: path.name.removeprefix(_PREFIX) for path in output.glob(f"{_PREFIX}*")}
    numbered = [path for path in steps if steps[path].isdecimal() and path.is_dir()]
    return sorted(numbered, key=lambda path: int(steps[path]), reverse=True)


def write_checkpoint_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Mark a checkpoint as complete: what it belongs to, and the size of each of its files."""
    sizes = {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != RECORD_FILE
    }
    write_json(folder / RECORD_FILE, {"record": record, "bytes": sizes})


def read_record(folder: Path) -> dict[str, Any]:
    """What the checkpoint or the output folder belongs to; empty when it does not say so."""
    record = read_json(folder / RECORD_FILE).get("record")
    return record if isinstance(record, dict) else {}


def step_of(folder: Path) -> int:
    """The optimiser steps that a checkpoint has behind it."""
    return int(read_json(folder / "trainer_state.json").get("global_step", 0))


def _fault(folder: Path) -> str:
    """Why no run can go on from this folder; "" when one can."""
    sizes = read_json(folder / RECORD_FILE).get("bytes")
    if not any((place / RECORD_FILE).exists() for place in (folder, folder.parent)):
        # Another trainer's: the chain asks about those of LLaMA-Factory, too.
        return _fault_of_state(folder)
    if not isinstance(sizes, dict) or not sizes:
        return f"it has no {RECORD_FILE}, which is written last"
    for name, size in sizes.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} of {size} bytes"
    return _fault_of_state(folder)


def _fault_of_state(folder: Path) -> str:
    has_step = isinstance(read_json(folder / "trainer_state.json").get("global_step"), int)
    return "" if has_step else "trainer_state.json cannot be read"
