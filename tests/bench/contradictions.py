"""How many contradictions the judge finds in the hand-made layouts, now and at a commit.

    .envs/main/bin/python tests/bench/contradictions.py --before COMMIT

A contradiction is a text whose stated totals point to the other answer. Prints Markdown: precision
and recall of the finding "contradicts", and the share of texts with the right finding of any kind.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from types import ModuleType

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
sys.path.insert(0, str(Path(__file__).parents[1]))

from cot_reward import judge
from cot_reward.tasks import TASKS
from helpers.environments import REPO
from helpers.layouts import cases

TASK_OF = {"Image": TASKS["image_generation"], "Video": TASKS["video_generation"]}


def judge_at(commit: str) -> ModuleType:
    """The module of the judge as it was at a commit."""
    command = ["git", "-C", str(REPO), "show", f"{commit}:scripts/cot_reward/judge.py"]
    source = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    module = ModuleType("judge_before")
    sys.modules[module.__name__] = module
    exec(compile(source, f"judge.py at {commit}", "exec"), module.__dict__)
    return module


def row(name: str, module: ModuleType) -> str:
    texts = list(cases())
    found = [module.judge(case.text, TASK_OF[case.noun], case.answer).coherence for case in texts]
    pairs = list(zip((case.finding for case in texts), found, strict=True))
    hits = pairs.count(("contradicts", "contradicts"))
    said = sum(finding == "contradicts" for finding in found)
    there = sum(case.finding == "contradicts" for case in texts)
    right = sum(wanted == finding for wanted, finding in pairs)
    precision = f"{hits / said:.3f} ({hits}/{said})" if said else "none found"
    return (
        f"| {name} | {precision} | {hits / there:.3f} ({hits}/{there}) "
        f"| {right / len(texts):.3f} ({right}/{len(texts)}) |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", help="a commit whose judge is compared")
    before = parser.parse_args().before
    print("| judge | precision | recall | right finding |\n|---|---|---|---|")
    if before:
        print(row(before, judge_at(before)))
    print(row("now", judge))


if __name__ == "__main__":
    main()
