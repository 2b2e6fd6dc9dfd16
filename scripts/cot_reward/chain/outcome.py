"""Which model is the result of a run: stage 3, or stage 2 where stage 3 writes worse."""

import json
from pathlib import Path
from typing import Any

from cot_reward.chain.commands import WATCH
from cot_reward.chain.state import Records
from cot_reward.chain.steps import Chain
from cot_reward.errors import UserError
from cot_reward.evaluation.collect import WATCH_FILE

# A link in the folder of a run.
RESULT = "result"


def set_results(chain: Chain, records: Records) -> list[str]:
    """Let the `result` of each run that has been watched be its model; what is worse, in words.

    The link is relative, so that the folder of results can be moved. A run whose models have
    changed since they were compared has no result. Raises UserError when the place of the link is
    taken.
    """
    told = []
    watches = [step for step in chain.steps() if step.name.split("/")[-1] == WATCH]
    for step, (_, run) in zip(watches, chain.runs(), strict=True):
        link, stage3 = run / RESULT, run / "stage3"
        if link.is_symlink():
            link.unlink()
        if records.find(step).condition != "done":
            continue
        if link.exists():
            raise UserError(f"{link} is no link of this chain; move it away")
        watched = _read(run / WATCH_FILE)
        stage2 = chain.trainings(run)[1].trained(run)
        result = stage2 if watched["fell"] else stage3
        link.symlink_to(result.name)
        if watched["fell"]:
            accuracy = watched["figures"]["accuracy"]
            told.append(
                f"{stage3} writes worse than {stage2}: {', '.join(watched['fell'])} fell (accuracy "
                f"{100 * accuracy['before']:.1f} -> {100 * accuracy['after']:.1f}; "
                f"{run / WATCH_FILE}), so {link} is {result}. Fewer steps, a lower learning rate "
                "or more pairs may do better"
            )
    return told


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}; remove it, and run again") from None
