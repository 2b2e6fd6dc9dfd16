"""Which model is the result of a run: that of its last round of DPO that was a gain."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cot_reward.chain.rounds import Round, accuracy_in_words, read_watch, watch_step
from cot_reward.chain.state import Records
from cot_reward.chain.steps import Chain
from cot_reward.errors import UserError
from cot_reward.evaluation.rounds import rose

# A link in the folder of a run.
RESULT = "result"


@dataclass(frozen=True)
class Outcome:
    """The model that is a run's result.

    told: why it is not the model of the last round that was run; "" where it is
    worse: stage 3, the first round, writes worse than stage 2
    """

    model: Path
    told: str = ""
    worse: bool = False


def set_results(chain: Chain, records: Records) -> list[Outcome]:
    """Let the `result` of each run whose rounds have been watched be its model; these outcomes.

    The link is relative, so that the folder of results can be moved. A run whose models have
    changed since they were compared has no result. Raises UserError when the place of the link is
    taken.
    """
    outcomes = []
    for _, run in chain.runs():
        link = run / RESULT
        if link.is_symlink():
            link.unlink()
        outcome = _outcome(chain, run, records)
        if outcome is None:
            continue
        if link.exists():
            raise UserError(f"{link} is no link of this chain; move it away")
        link.symlink_to(outcome.model.relative_to(run))
        outcomes.append(outcome)
    return outcomes


def _outcome(chain: Chain, run: Path, records: Records) -> Outcome | None:
    """The outcome of the rounds that have been watched; None before the first one."""
    outcome = None
    for round_ in chain.rounds(run):
        if records.find(watch_step(round_, chain.commands)).condition != "done":
            break
        watched = read_watch(round_.watch_file)
        # Stage 3 is the result where nothing fell; a later round must have been a gain.
        is_kept = rose(watched) or (round_.number == 1 and not watched["fell"])
        if is_kept:
            outcome = Outcome(round_.model)
        else:
            outcome = Outcome(round_.start, _reason(round_, watched), worse=round_.number == 1)
        if not rose(watched):
            break
    return outcome


def _reason(round_: Round, watched: Mapping[str, Any]) -> str:
    """Why the model that a round starts at is the result, and not the round's own."""
    figures = f"{accuracy_in_words(watched)}; {round_.watch_file}"
    result = f"so {round_.run / RESULT} is {round_.start}"
    if not watched["fell"]:
        return f"{round_.model} is no better than {round_.start} ({figures}), {result}"
    return (
        f"{round_.model} writes worse than {round_.start}: {', '.join(watched['fell'])} fell "
        f"({figures}), {result}. Fewer steps, a lower learning rate or more pairs may do better"
    )
