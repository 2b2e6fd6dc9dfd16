"""Small folders of judged runs and trainer records, laid out as scripts/chain.sh leaves them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cot_reward.evaluation.collect import MODES, STAGES
from cot_reward.evaluation.rounds import WATCH_FILE, round_folder
from cot_reward.evaluation.watch import FIGURES

from helpers.rows import judged_row, write_lines

# The verdicts about one comparison: in the given order, in the swapped order.
Verdicts = tuple[str, str]
RIGHT, WRONG, TURNED = (
    ("correct", "correct"),
    ("incorrect", "incorrect"),
    ("correct", "incorrect"),
)


def judged_run(
    folder: Path, verdicts: Sequence[Verdicts], sample: int = 0, sources: Sequence[str] = ("made",)
) -> Path:
    """A finished run: two rows for each comparison, and an empty file where no row goes.

    The comparisons are of the `sources` in turns.
    """
    files: dict[str, list[dict[str, Any]]] = {"correct": [], "incorrect": [], "unusable": []}
    for number, both in enumerate(verdicts):
        for order, verdict in zip(("given", "swapped"), both, strict=True):
            label = 1 if order == "given" else 2
            row = judged_row("text", label, id=f"comparison {number}", order=order, sample=sample)
            row |= {"verdict": verdict, "coherence": "coherent"}
            row["source"] = sources[number % len(sources)]
            if verdict in ("correct", "incorrect"):
                row["answer"] = label if verdict == "correct" else 3 - label
            else:
                row |= {"answer": 0, "coherence": ""}
            files[verdict if verdict in files else "unusable"].append(row)
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in files.items():
        write_lines(folder / f"{name}.jsonl", rows)
    (folder / "summary.json").write_text("{}")
    return folder


def trained(folder: Path, steps: int = 4, seconds: float = 2.0) -> Path:
    """The record that a trainer leaves, with the metrics that are plotted."""
    history: list[dict[str, Any]] = [
        {
            "step": step,
            "loss": 1 / step,
            "rewards/chosen": 0.1 * step,
            "rewards/rejected": -0.1 * step,
            "rewards/accuracies": 0.5,
        }
        for step in range(1, steps + 1)
    ]
    history.append({"step": steps, "train_runtime": seconds})
    folder.mkdir(parents=True, exist_ok=True)
    state = {"global_step": steps, "log_history": history}
    (folder / "trainer_state.json").write_text(json.dumps(state))
    return folder


def further_round(run: Path, number: int, verdicts: Sequence[Verdicts]) -> Path:
    """A finished round of DPO after one that was a gain; the folder of the round."""
    gain = {"difference": 0.1, "low": 0.05, "high": 0.15}
    watched = json.dumps({"fell": [], "figures": dict.fromkeys([*FIGURES, "answers_1"], gain)})
    (round_folder(run, number - 1) / WATCH_FILE).write_text(watched)
    folder = round_folder(run, number)
    for mode in MODES:
        judged_run(folder / "eval_stage3" / mode, verdicts)
    trained(folder / "stage3")
    return folder


def finished_demo(
    runs: Path,
    seeds: Sequence[int] = (0,),
    verdicts: Mapping[str, Sequence[Verdicts]] | None = None,
    sources: Sequence[str] = ("made",),
) -> Path:
    """Every run of a demo that has ended; `verdicts` by stage, else all comparisons are right."""
    for stage in STAGES:
        of_stage = (verdicts or {}).get(stage, [RIGHT] * 4)
        for seed in seeds:
            folder = runs / f"seed{seed}"
            answers = runs / "eval_base" if stage == "base" else folder / f"eval_{stage}"
            for mode in MODES:
                judged_run(answers / mode, of_stage, sources=sources)
            if stage != "base":
                trained(folder / stage)
    return runs
