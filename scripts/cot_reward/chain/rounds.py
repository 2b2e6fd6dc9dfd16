"""Rounds of DPO: what each trains on, and when a run needs no further one.

The first round is stage 3. A later one starts at the model of the round before, which is also its
reference, and which answers the comparisons that the round before still has wrong texts about.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cot_reward.chain.commands import Commands
from cot_reward.chain.state import Records
from cot_reward.chain.step import Step
from cot_reward.errors import UserError
from cot_reward.evaluation.rounds import WATCH_FILE, rose, round_folder
from cot_reward.store import read_json


@dataclass(frozen=True)
class Round:
    """A round of DPO.

    folder: of its results
    start: the model that it trains, which is also the reference
    passes: inferences of this model, with the right and wrong texts of the pairs
    earlier: inferences of the model before, with further wrong texts
    watched: answers of `start` to the comparisons that watch the training
    """

    number: int
    run: Path
    start: Path
    passes: tuple[Path, ...]
    earlier: tuple[Path, ...]
    watched: Path

    @property
    def folder(self) -> Path:
        return round_folder(self.run, self.number)

    @property
    def model(self) -> Path:
        return self.folder / "stage3"

    @property
    def watch_file(self) -> Path:
        return self.folder / WATCH_FILE


def following(previous: Round, commands: Commands) -> Round:
    """The round after another one."""
    number = previous.number + 1
    return Round(
        number, previous.run, previous.model, (round_folder(previous.run, number) / "infer",),
        previous.passes, commands.watched(previous.folder, "stage3"),
    )  # fmt: skip


def training_steps(round_: Round, commands: Commands, seed: int | None) -> Iterator[Step]:
    """From the texts of a round to its model, and what this model is worth."""
    profile, folder = commands.profile, round_.folder
    rows = folder / "pairs/train.jsonl"
    yield commands.pairs(folder, round_.passes, round_.earlier)
    yield commands.check("check_pairs", folder, rows, profile.media_root, (rows,))
    title = "DPO" if round_.number == 1 else f"DPO, round {round_.number}"
    yield commands.dpo("stage3", title, profile.stage3, round_.start, seed, folder)
    yield from commands.evaluate(round_.model, "stage3", seed, folder)
    yield from commands.validate(round_.model, "stage3", seed, folder)
    yield watch_step(round_, commands)


def watch_step(round_: Round, commands: Commands) -> Step:
    """The comparison of a round's model with the model that the round starts at."""
    models = "stage 3 write worse than stage 2"
    if round_.number > 1:
        models = f"round {round_.number} write worse than round {round_.number - 1}"
    return commands.watch(round_.folder, round_.watched, f"does {models}?")


def later_steps(rounds: Sequence[Round], commands: Commands, seed: int | None) -> Iterator[Step]:
    """The steps of all rounds after the first; each knows the rounds that must have been gains."""
    profile = commands.profile
    for number, round_ in enumerate(rounds[1:], 1):
        only_after = tuple(watch_step(earlier, commands) for earlier in rounds[:number])
        data = [folder / "incorrect.jsonl" for folder in round_.earlier]
        infer = commands.infer(
            "infer", f"the pass of round {round_.number}", round_.start, seed, round_.folder, data,
            [profile.media_root] * len(data), profile.second_samples, profile.second_temperature,
            profile.min_parsed, for_training=True,
        )  # fmt: skip
        for step in (infer, *training_steps(round_, commands, seed)):
            yield replace(step, only_after=only_after)


def is_needed(step: Step, records: Records, made: Collection[Path] = ()) -> tuple[bool | None, str]:
    """Whether a run needs a step of a later round (None: not known yet), and why in words.

    A round is needed while validation rises. `made`: results that are made anew before the step.
    Raises UserError for a comparison that cannot be read.
    """
    for watch in step.only_after:
        assert watch.done_file
        if watch.done_file in made or records.find(watch).condition != "done":
            return None, f"only if validation rises in {watch.name}"
        watched = read_watch(watch.done_file)
        if not rose(watched):
            fell = f"; {', '.join(watched['fell'])} fell" if watched["fell"] else ""
            return False, (
                f"not needed: validation no longer rises ({watch.name}: "
                f"{accuracy_in_words(watched)}{fell})"
            )
    return True, ""


def read_watch(path: Path) -> dict[str, Any]:
    """The comparison of a round's model with its start. Raises UserError where it is damaged."""
    if watched := read_json(path):
        return watched
    raise UserError(f"{path}: cannot be read; remove it, and run again")


def accuracy_in_words(watched: Mapping[str, Any]) -> str:
    """Accuracy before and after a round, in %."""
    accuracy = watched["figures"]["accuracy"]
    return f"accuracy {100 * accuracy['before']:.1f} -> {100 * accuracy['after']:.1f}"
