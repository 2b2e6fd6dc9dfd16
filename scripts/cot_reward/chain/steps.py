"""The steps of a chain, in their order."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cot_reward.chain.commands import Commands
from cot_reward.chain.settings import Profile
from cot_reward.chain.step import Step, Training

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
        data, roots = self._second_pass_data(run)
        passes = [
            ("stage2_infer", profile.second_samples, profile.second_temperature, profile.min_parsed)
        ]
        if profile.hot_samples:
            passes.append(("stage2_infer_hot", profile.hot_samples, profile.hot_temperature, 0.0))
        for name, samples, temperature, min_parsed in passes:
            yield commands.infer(
                name, "the second pass", stage2, seed, run, data, roots, samples, temperature,
                min_parsed, for_training=True,
            )  # fmt: skip
        yield from commands.evaluate(stage2, "stage2", seed, run)
        yield from commands.validate(stage2, "stage2", seed, run)
        yield commands.pairs(run, [run / name for name, *_ in passes])
        rows = run / "pairs/train.jsonl"
        yield commands.check("check_pairs", run, rows, profile.media_root, (rows,))
        for name, config in (("stage3", profile.stage3), ("control", profile.control)):
            if config:
                yield commands.dpo(name, config, stage2, seed, run)
                yield from commands.evaluate(run / name, name, seed, run)
            if name == "stage3":
                yield from commands.validate(run / name, name, seed, run)
                yield commands.watch(run)
        for control in controls:
            yield commands.check(
                "check_control_rejection", run, control.rows, profile.media_root, control.inputs
            )
            yield from commands.sft(control, seed, run)
            yield from commands.evaluate(control.trained(run), control.name, seed, run)

    def _second_pass_data(self, run: Path) -> tuple[list[Path], list[Path]]:
        """Files of the second pass, and the folder of media paths of each."""
        profile = self.profile
        names = {"all": JUDGED_FILES, "wrong": ("incorrect",), "none": ()}[profile.second_pass]
        judged = [run / f"stage1_infer/{name}.jsonl" for name in names]
        fresh_root = profile.fresh_image_root or profile.media_root
        roots = [profile.media_root] * len(judged) + [fresh_root] * len(profile.fresh)
        return judged + profile.fresh, roots
