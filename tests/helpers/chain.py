"""Chains as tests look at them: steps, a start in another process, and steps that are done."""

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

from cot_reward.chain.settings import Profile
from cot_reward.chain.state import Records
from cot_reward.chain.step import Step
from cot_reward.chain.steps import Chain
from cot_reward.settings import parse

from helpers.environments import REPO
from helpers.evaluation import Verdicts, judged_run, trained


def profile(path: str = "configs/chain.yaml", *flags: str) -> Profile:
    return parse(Profile, "", argv=["--config", path, *flags])


def steps(path: str = "configs/chain.yaml", gpus: int = 8, *flags: str) -> dict[str, Step]:
    return {step.name: step for step in Chain(profile(path, *flags), gpus).steps()}


def run(*flags: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["scripts/chain.sh", *flags], cwd=REPO, capture_output=True, text=True, check=False
    )


def heads(done: subprocess.CompletedProcess) -> list[str]:
    """The line of every step of a start."""
    return [line for line in done.stdout.splitlines() if line.startswith("== ")]


def value_of(step: Step, flag: str) -> list[str]:
    """The values of a flag in the step's command."""
    found = list(step.command[step.command.index(flag) + 1 :])
    end = next((n for n, part in enumerate(found) if part.startswith("--")), len(found))
    return found[:end]


def answer(folder: Path, verdicts: Sequence[Verdicts]) -> None:
    """A finished inference whose answers can be compared with those of another model."""
    judged_run(folder, verdicts)
    (folder / "settings.json").write_text("{}")


def record_as_done(found: Sequence[Step], runs: Path, verdicts: Sequence[Verdicts]) -> None:
    """Results of steps, as small as can be, with the records of a chain that has made them.

    `verdicts`: of every inference that has no answers yet.
    """
    for step in found:
        if step.model and step.out and not step.out.exists():
            answer(step.out, verdicts)
        elif step.trains and step.out:
            trained(step.out)
            (step.out / "summary.json").write_text("{}")
        elif step.out:
            step.out.mkdir(parents=True, exist_ok=True)
            (step.out / "train.jsonl").write_text("{}\n")
            (step.out / "summary.json").write_text(
                json.dumps({
                    "pairs": 2, "comparisons": 2, "chosen_answer": {"1": 1, "2": 1},
                    "pair_kinds": {"same_model": 1, "published": 1}, "shortcut": {"words": 0.5},
                })
            )  # fmt: skip
        elif step.done_file:
            step.done_file.parent.mkdir(parents=True, exist_ok=True)
            step.done_file.write_text("{}")
    records = Records(runs)
    for step in found:
        records.start(step)
        records.finish(step, 1.0)
