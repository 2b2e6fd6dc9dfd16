"""Which steps are done, from what, and why a step has to run: a small record for each step.

A record is written when a step starts and again when it has ended well, in RUNS/.chain. A step is
done when its record says so, its result stands there, and everything that it was made from is as
it was.
"""

import json
import os
import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cot_reward.chain.step import Step
from cot_reward.errors import UserError
from cot_reward.fingerprints import MISSING, Fingerprints
from cot_reward.store import write_json

# done: nothing to do. new: nothing of it is there. continue: it was stopped, or has more to do.
# anew: its result is of other inputs and is set aside. foreign: a result that no record explains.
Condition = Literal["done", "new", "continue", "anew", "foreign"]


@dataclass(frozen=True)
class Finding:
    """The condition of a step, and the reason in words."""

    condition: Condition
    reason: str


class Records:
    """The records of a chain's steps, below `runs`."""

    def __init__(self, runs: Path) -> None:
        self._runs = runs
        self._folder = runs / ".chain"
        self._fingerprints = Fingerprints(self._folder / "hashes.json")

    def find(self, step: Step) -> Finding:
        """The condition of a step. Raises UserError for an input that cannot be read."""
        if step.always:
            return Finding("new", "made anew each time")
        record = self._read(step)
        if record is None:
            if _holds_something(step):
                return Finding(
                    "foreign", f"{step.out} is not empty, and this chain did not fill it"
                )
            return Finding("new", "not done yet")
        changed = _changes(record["made_from"], self._made_from(step))
        if not record.get("finished"):
            if changed:
                return Finding("anew", f"it was stopped, and {changed[0]}")
            return Finding("continue", "it was stopped")
        if step.done_file and not step.done_file.exists():
            return Finding("continue" if not changed else "anew", f"{step.done_file} is missing")
        if changed:
            return Finding("anew", "; ".join(changed))
        added = _changes(record["added"], self._added(step))
        if added:
            return Finding("continue", "; ".join(added))
        return Finding("done", "")

    def start(self, step: Step) -> None:
        """Write that the step has begun. Raises UserError when an input is missing."""
        made_from, added = self._made_from(step), self._added(step)
        missing = [name for name, value in (made_from | added).items() if value == MISSING]
        if missing:
            raise UserError(f"{step.name}: {missing[0]}: no such file or folder")
        record = {
            "step": step.name, "command": list(step.command), "made_from": made_from,
            "added": added, "finished": "", "seconds": 0.0, "adopted": False,
        }  # fmt: skip
        write_json(self._path(step), record)

    def finish(self, step: Step, seconds: float, adopted: bool = False) -> None:
        """Write that the step has ended well, and how long it took.

        The record keeps what the inputs were at the start: an input that has changed meanwhile
        makes the step run again.
        """
        record = self._read(step) or {}
        finished = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        done = {"finished": finished, "seconds": round(seconds, 1), "adopted": adopted}
        write_json(self._path(step), record | done)

    def seconds(self, steps: Iterable[Step]) -> list[dict[str, Any]]:
        """Name and seconds of every finished step, in order."""
        found = [(step.name, self._read(step)) for step in steps]
        return [
            {"step": name, "seconds": record["seconds"]}
            for name, record in found
            if record and record.get("finished")
        ]

    def set_aside(self, step: Step) -> str:
        """Move the step's result away, so that nothing is lost; the folder that it is in now.

        One earlier result is kept for each step.
        """
        if step.out is None or not step.out.exists():
            return ""
        kept = self._runs / "replaced" / step.out.relative_to(self._runs)
        if kept.exists():
            shutil.rmtree(kept)
        kept.parent.mkdir(parents=True, exist_ok=True)
        os.replace(step.out, kept)
        return str(kept)

    def _path(self, step: Step) -> Path:
        return self._folder / (step.name.replace("/", ".") + ".json")

    def _read(self, step: Step) -> dict[str, Any] | None:
        try:
            record = json.loads(self._path(step).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise UserError(
                f"{self._path(step)}: cannot be read: {error}; remove it, and the step runs again"
            ) from None
        return dict(record)

    def _made_from(self, step: Step) -> dict[str, str]:
        return self._values(step.inputs, step.flags)

    def _added(self, step: Step) -> dict[str, str]:
        return self._values(step.added_inputs, step.added_flags)

    def _values(self, paths: Iterable[Path], flags: Mapping[str, str]) -> dict[str, str]:
        """Fingerprints by path, then the values of flags."""
        return {str(path): self._fingerprints.of(path) for path in paths} | {
            f"--{name}": value for name, value in flags.items()
        }


def _changes(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """What differs between two lists of inputs, in words."""
    told = [
        _change(name, before[name], value) if name in before else f"{name} is new"
        for name, value in now.items()
        if before.get(name) != value
    ]
    return told + [f"{name} is no longer used" for name in before if name not in now]


def _change(name: str, before: str, now: str) -> str:
    if now == MISSING:
        return f"{name} is missing"
    if name.startswith("--"):
        return f"{name.removeprefix('--')} was {before} and is {now}"
    return f"{name} has changed"


def _holds_something(step: Step) -> bool:
    """Whether a result, finished or not, stands in the step's folder."""
    return step.out is not None and step.out.is_dir() and any(step.out.iterdir())
