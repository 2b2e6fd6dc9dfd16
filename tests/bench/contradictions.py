"""How many contradictions the judge finds in the hand-made layouts, now and at a commit.

    .envs/main/bin/python tests/bench/contradictions.py --before COMMIT

A contradiction is a text whose stated totals point to the other answer. Prints Markdown: precision
and recall of the finding "contradicts", and the share of texts with the right finding of any kind.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

# JUDGE_SCRIPTS has the package of another commit, when this script has called itself.
sys.path.insert(0, os.environ.get("JUDGE_SCRIPTS", str(Path(__file__).parents[2] / "scripts")))
sys.path.insert(0, str(Path(__file__).parents[1]))

from cot_reward.judge import judge
from cot_reward.tasks import TASKS
from helpers.environments import REPO
from helpers.layouts import cases

TASK_OF = {"Image": TASKS["image_generation"], "Video": TASKS["video_generation"]}


def print_row_at(commit: str) -> None:
    """Print the row of the judge as it was at a commit."""
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(
            ["git", "-C", REPO, "archive", commit, "scripts"], check=True, capture_output=True
        ).stdout
        subprocess.run(["tar", "-x", "-C", folder], input=archive, check=True)
        environment = os.environ | {"JUDGE_SCRIPTS": str(Path(folder, "scripts"))}
        subprocess.run([sys.executable, __file__, "--name", commit], check=True, env=environment)


def row(name: str) -> str:
    texts = list(cases())
    found = [judge(case.text, TASK_OF[case.noun], case.answer).coherence for case in texts]
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
    parser.add_argument("--name", default="", help="print the row of this name only")
    arguments = parser.parse_args()
    if not arguments.name:
        print("| judge | precision | recall | right finding |\n|---|---|---|---|", flush=True)
    if arguments.before:
        print_row_at(arguments.before)
    print(row(arguments.name or "now"))


if __name__ == "__main__":
    main()
