"""Rounds of DPO as their results lie on disk, and whether one of them was a gain.

The results of the first round, stage 3, are in the folder of the run; those of round N in
RUN/roundN, by the same names.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cot_reward.store import read_json

# In the folder of a round: its model compared with the model that it started from.
WATCH_FILE = "check_stage3.json"
_FOLDER = re.compile(r"round\d+")


def round_folder(run: Path, number: int) -> Path:
    """The folder of a round's results."""
    return run if number == 1 else run / f"round{number}"


def is_round_folder(name: str) -> bool:
    """Whether a later round's results are in a folder of this name."""
    return bool(_FOLDER.fullmatch(name))


def rose(watched: Mapping[str, Any]) -> bool:
    """Whether a round raised accuracy on the data that watch it, and nothing fell there.

    `watched` is the content of a WATCH_FILE.
    """
    # Shares that cancel out may add up to 1e-17.
    return not watched["fell"] and round(watched["figures"]["accuracy"]["difference"], 9) > 0


def evaluated_rounds(run: Path) -> list[int]:
    """The rounds of a run, the first one included, as far as the round before was a gain.

    A later one is left over from an earlier start of the chain.
    """
    numbers = [1]
    while (round_folder(run, numbers[-1] + 1) / "eval_stage3").exists():
        watched = read_json(round_folder(run, numbers[-1]) / WATCH_FILE)
        if not watched or not rose(watched):
            break
        numbers.append(numbers[-1] + 1)
    return numbers
