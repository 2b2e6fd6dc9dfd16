"""The steps of a chain, in their order."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cot_reward.chain.commands import Commands
from cot_reward.chain.rounds import Round, following, later_steps, training_steps
from cot_reward.chain.settings import Profile
from cot_reward.chain.step import Step, Training
from cot_reward.evaluation.collect import COMPARED

JUDGED_FILES = ("correct", "incorrect", "unusable")


@dataclass(frozen=True)
class Chain:
    """The steps of a profile on a machine with so many GPUs."""

    profile: Profile
    gpus: int

    @property
    def commands(self) -> Commands:
        return Commands(self.profile, self.gpus)

    def runs(self) -> list[tuple[int | None, Path]]:
        """(seed, folder) of each run; without seeds one run, in the folder of the results."""
        folder = self.profile.runs
        return [(seed, folder / f"seed{seed}") for seed in self.profile.seeds] or [(None, folder)]

    def trainings(self, run: Path) -> list[Training]:
        """Stages 1 and 2 of a run, and the control that is trained in the same way, if any."""
        profile, commands = self.profile, self.commands
        first = Training(
            "stage1", "cold start", profile.stage1, profile.stage1_export, "cold_start",
            profile.cold_start, commands.cold_start_root, commands.base,
            commands.cold_start_inputs,
        )  # fmt: skip
        rejection_rows = run / "stage1_infer/correct.jsonl"
        second = Training(
            "stage2", "rejection sampling", profile.stage2, profile.stage2_export, "rejection",
            rejection_rows, profile.media_root, first.trained(run), (rejection_rows,),
        )  # fmt: skip
        if not profile.control_rejection:
            return [first, second]
        control_rows = run / "stage2_infer/correct.jsonl"
        control = Training(
            "control_rejection", "control: one more rejection round", profile.control_rejection,
            profile.control_rejection_export, "control_rejection",
            control_rows, profile.media_root, second.trained(run), (control_rows,),
        )  # fmt: skip
        return [first, second, control]

    def rounds(self, run: Path) -> list[Round]:
        """The rounds of DPO of a run, those included that it may turn out not to need."""
        first = Round(
            1, run, self.trainings(run)[1].trained(run), tuple(self._second_passes(run)),
            (run / "stage1_infer",), self.commands.watched(run, "stage2"),
        )  # fmt: skip
        rounds = [first]
        while len(rounds) < self.profile.rounds:
            rounds.append(following(rounds[-1], self.commands))
        return rounds

    def steps(self) -> Iterator[Step]:
        """Every step, in order."""
        profile, commands = self.profile, self.commands
        if profile.world:
            yield commands.world(profile.world)
        elif not Path(profile.base).is_dir():
            yield commands.fetch_base()
        yield commands.check_cold_start()
        yield commands.derive_template()
        yield from commands.evaluate(commands.base, "base", None, profile.runs)
        for seed, run in self.runs():
            yield from self._run_steps(seed, run)
        for model in profile.compared:
            yield from commands.evaluate(
                model, f"{COMPARED}{model.name}", None, profile.runs, profile.compared_template
            )
        yield commands.report()

    def _run_steps(self, seed: int | None, run: Path) -> Iterator[Step]:
        profile, commands = self.profile, self.commands
        first, second, *controls = self.trainings(run)
        stage1, stage2 = first.trained(run), second.trained(run)
        yield from commands.sft(first, seed, run)
        yield commands.infer(
            "stage1_infer", "the first pass", stage1, seed, run, profile.sampling,
            profile.sampling_image_root, profile.samples, profile.temperature, profile.min_parsed,
            for_training=True,
        )  # fmt: skip
        yield from commands.evaluate(stage1, "stage1", seed, run)
        yield commands.check("check_rejection", run, second.rows, profile.media_root, second.inputs)
        yield from commands.sft(second, seed, run)
        rounds = self.rounds(run)
        data, roots = self._second_pass_data(run)
        for folder, (samples, temperature, min_parsed) in self._second_passes(run).items():
            yield commands.infer(
                folder.name, "the second pass", stage2, seed, run, data, roots, samples,
                temperature, min_parsed, for_training=True,
            )  # fmt: skip
        yield from commands.evaluate(stage2, "stage2", seed, run)
        yield from commands.validate(stage2, "stage2", seed, run)
        yield from training_steps(rounds[0], commands, seed)
        if profile.control:
            yield commands.dpo("control", "control", profile.control, stage2, seed, run)
            yield from commands.evaluate(run / "control", "control", seed, run)
        for control in controls:
            yield commands.check(
                "check_control_rejection", run, control.rows, profile.media_root, control.inputs
            )
            yield from commands.sft(control, seed, run)
            yield from commands.evaluate(control.trained(run), control.name, seed, run)
        yield from later_steps(rounds, commands, seed)

    def _second_passes(self, run: Path) -> dict[Path, tuple[int, float, float]]:
        """Folder of each second pass -> samples, temperature, and least share of readable texts."""
        profile = self.profile
        passes = {
            run / "stage2_infer": (
                profile.second_samples, profile.second_temperature, profile.min_parsed
            )
        }  # fmt: skip
        if profile.hot_samples:
            passes[run / "stage2_infer_hot"] = profile.hot_samples, profile.hot_temperature, 0.0
        return passes

    def _second_pass_data(self, run: Path) -> tuple[list[Path], list[Path]]:
        """Files of the second pass, and the folder of media paths of each."""
        profile = self.profile
        names = {"all": JUDGED_FILES, "wrong": ("incorrect",), "none": ()}[profile.second_pass]
        judged = [run / f"stage1_infer/{name}.jsonl" for name in names]
        fresh_root = profile.fresh_image_root or profile.media_root
        roots = [profile.media_root] * len(judged) + [fresh_root] * len(profile.fresh)
        return judged + profile.fresh, roots
