"""The exact command of every kind of step, and what its result is made from."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cot_reward.chain.settings import Profile
from cot_reward.chain.step import URL, Step, Training
from cot_reward.evaluation.collect import MODES
from cot_reward.evaluation.rounds import WATCH_FILE
from cot_reward.evaluation.watch import WORSE
from cot_reward.settings import read_yaml

PYTHON = ".envs/main/bin/python"
ACCELERATE = ".envs/main/bin/accelerate"
HUB = ".envs/main/bin/hf"
SFT_BIN = ".envs/sft/bin"


@dataclass(frozen=True)
class Commands:
    """The commands of a profile on a machine with so many GPUs.

    `seed` of a step: None without seeds. `run`: the folder of the step's results.
    """

    profile: Profile
    gpus: int

    @property
    def base(self) -> Path:
        """The folder of the base model; `fetch_base` or `world` makes it where it is not given."""
        if self.profile.world or not Path(self.profile.base).is_dir():
            return self.profile.runs / "base"
        return Path(self.profile.base)

    @property
    def template(self) -> Path:
        return self.profile.runs / "template.txt"

    @property
    def cold_start_root(self) -> Path:
        """The folder of the cold-start rows' media paths."""
        return self.profile.cold_start_media_root or self.profile.media_root

    @property
    def heldout_root(self) -> Path:
        """The folder of the held-out files' media paths."""
        return self.profile.heldout_image_root or self.profile.media_root

    @property
    def validation_root(self) -> Path:
        """The folder of the validation files' media paths."""
        return self.profile.validation_image_root or self.profile.media_root

    @property
    def _kept_out(self) -> list[Path]:
        """Files whose comparisons no model is trained on."""
        return [*self.profile.heldout, *self.profile.validation]

    @property
    def _kept_out_roots(self) -> list[str]:
        """The folder of the media paths of each of these files."""
        profile = self.profile
        roots = [self.heldout_root] * len(profile.heldout)
        return list(map(str, roots + [self.validation_root] * len(profile.validation)))

    @property
    def _exclude_flags(self) -> list[str]:
        """What keeps held-out comparisons out of the rows that models are trained on."""
        return [
            "--exclude", *map(str, self._kept_out), "--exclude-image-root", *self._kept_out_roots
        ]  # fmt: skip

    @property
    def cold_start_inputs(self) -> tuple[Path, ...]:
        """What tells whether rows or pictures of the cold start have changed."""
        profile = self.profile
        if profile.world:
            # It is written anew with the pictures, also where the rows stay the same.
            return profile.cold_start, profile.cold_start.parent / "summary.json"
        own_root = {self.cold_start_root} - {profile.media_root}
        return profile.cold_start, *own_root

    def world(self, config: Path) -> Step:
        data = self.profile.cold_start.parent
        family = self.profile.world_family
        command = (
            PYTHON, "scripts/make_demo.py", "--config", str(config),
            "--out", str(data), "--model-out", str(self.base),
            *(["--family", family] if family else []),
        )  # fmt: skip
        # make_demo.py itself leaves data and base that were made with the same settings.
        return Step(
            "world", "a toy world and its base model", command, (config,),
            {"family": family} if family else {},
            done_file=self.base / "summary.json", trains="base",
        )  # fmt: skip

    def fetch_base(self) -> Step:
        base = self.profile.base
        return Step(
            "fetch_base", "the base model from the hub",
            (HUB, "download", base, "--local-dir", str(self.base)),
            flags={"base": base}, out=self.base, done_file=self.base / "config.json",
        )  # fmt: skip

    def check_cold_start(self) -> Step:
        roots = map(Path, self._kept_out_roots)
        return self.check(
            "check_cold_start", self.profile.runs, self.profile.cold_start, self.cold_start_root,
            self.cold_start_inputs,
            # Keys of comparisons below two roots differ, so that nothing could be compared.
            held_out=all(
                root.resolve().is_relative_to(self.cold_start_root.resolve()) for root in roots
            ),
        )  # fmt: skip

    def check(
        self,
        name: str,
        run: Path,
        rows: Path,
        media_root: Path,
        inputs: tuple[Path, ...],
        held_out: bool = True,
    ) -> Step:
        """`held_out`: the rows are proved to be free of the held-out comparisons, too."""
        command = [PYTHON, "scripts/check_rows.py", str(rows), "--media-root", str(media_root)]
        flags = {"media_root": str(media_root)}
        if held_out:
            command += self._exclude_flags
            inputs = (*inputs, *self._kept_out)
            flags["exclude_image_root"] = " ".join(self._kept_out_roots)
        return Step(
            self._name(run, name), "every row and medium before a training", tuple(command),
            inputs, flags,
        )  # fmt: skip

    def derive_template(self) -> Step:
        rows = self.profile.cold_start
        command = (
            PYTHON, "scripts/derive_template.py", str(rows), "--out", str(self.template)
        )  # fmt: skip
        return Step(
            "template", "the prompt that the cold-start rows share", command, (rows,),
            done_file=self.template,
        )  # fmt: skip

    def sft(self, training: Training, seed: int | None, run: Path) -> Iterator[Step]:
        out = run / training.name
        values = {
            "model_name_or_path": str(training.start),
            "dataset": training.data_set,
            "dataset_dir": str(run),
            "media_dir": str(training.media_root),
            **({} if seed is None else {"seed": str(seed)}),
            "output_dir": str(out),
        }
        chat_template = self.profile.sft_template
        template = {"template": chat_template} if chat_template else {}
        values |= template
        deepspeed = read_yaml(training.config).get("deepspeed")
        environment = {"PATH": f"{SFT_BIN}:$PATH"}
        if deepspeed:
            # LLaMA-Factory wants torchrun with DeepSpeed, also on a single GPU.
            environment["FORCE_TORCHRUN"] = "1"
        if self.gpus > 1 or deepspeed:
            environment["NPROC_PER_NODE"] = str(max(1, self.gpus))
        name = self._name(run, training.name)
        yield Step(
            name, training.title,
            ("llamafactory-cli", "train", str(training.config), *_assign(values)),
            (training.config, training.start, *training.inputs),
            {key: values[key] for key in ("media_dir", "seed", "template") if key in values},
            out, out / "trainer_state.json", environment=environment, trains="sft",
            sft=training,
        )  # fmt: skip
        if training.export:
            merged = training.trained(run)
            yield Step(
                f"{name}_merged", "the adapter merged into its base",
                ("llamafactory-cli", "export", str(training.export), *_assign({
                    "model_name_or_path": str(training.start),
                    "adapter_name_or_path": str(out), "export_dir": str(merged),
                } | template)),
                (training.export, training.start, out), out=merged,
                done_file=merged / "config.json",
                environment={"PATH": environment["PATH"]}, trains="export",
            )  # fmt: skip

    def infer(
        self,
        name: str,
        title: str,
        model: Path,
        seed: int | None,
        run: Path,
        data: Sequence[Path],
        image_roots: Sequence[Path],
        samples: int,
        temperature: float,
        min_parsed: float,
        *,
        for_training: bool,
        template: Path | None = None,
    ) -> Step:
        """`for_training`: held-out comparisons are left out, and `until` of the profile holds.

        `template`: another prompt than that of the cold-start rows.
        """
        template = template or self.template
        out, media_root = run / name, self.profile.media_root
        inference = self.profile.inference
        own_roots = dict.fromkeys(root for root in image_roots if root != media_root)
        temperature_text = f"{temperature:g}"
        command = [
            PYTHON, "scripts/image_stream_gpt.py", "--config", str(inference),
            "--base-url", URL, "--model", str(model), "--template", str(template),
            "--media-root", str(media_root),
            "--image-root", *map(str, image_roots or [media_root]),
            "--data", *map(str, data), "--out", str(out),
            "--num-samples", str(samples), "--temperature", temperature_text,
            "--min-parsed", f"{min_parsed:g}",
        ]  # fmt: skip
        flags = {"temperature": temperature_text}
        added_inputs, added_flags = tuple(data), {"samples": str(samples)}
        until, first = self.profile.until, self.profile.first
        if not for_training:
            # Also where the YAML says otherwise: texts that are asked for because of other texts
            # would make the table wrong.
            command += ["--until", "off"]
        else:
            if until != "off" and first < samples:
                command += ["--until", until, "--first", str(first)]
                added_flags |= {"until": until, "first": str(first)}
            # With other held-out data the client derives its files anew, and asks nothing twice.
            command += self._exclude_flags
            added_inputs += tuple(self._kept_out)
            added_flags["exclude_image_root"] = " ".join(self._kept_out_roots)
        if seed is not None:
            command += ["--seed", str(seed)]
            flags["seed"] = str(seed)
        return Step(
            self._name(run, name), title, tuple(command),
            (inference, model, template, *own_roots), flags, out, out / "summary.json",
            added_inputs, added_flags, model=model,
        )  # fmt: skip

    def evaluate(
        self, model: Path, stage: str, seed: int | None, run: Path, template: Path | None = None
    ) -> Iterator[Step]:
        """The held-out comparisons in both orders, greedy and sampled."""
        profile = self.profile
        roots = [self.heldout_root]
        for mode, title in MODES.items():
            samples, temperature = (1, 0.0) if mode == "greedy" else (profile.eval_samples, 1.0)
            yield self.infer(
                f"eval_{stage}/{mode}", f"the held-out comparisons, {title}", model,
                seed, run, profile.heldout, roots, samples, temperature, 0.0,
                for_training=False, template=template,
            )  # fmt: skip

    def validate(self, model: Path, stage: str, seed: int | None, run: Path) -> Iterator[Step]:
        """The validation comparisons, where the profile has them."""
        profile = self.profile
        if profile.validation:
            yield self.infer(
                f"validate_{stage}", "the validation comparisons, T=1", model, seed, run,
                profile.validation, [self.validation_root],
                profile.eval_samples, 1.0, 0.0, for_training=False,
            )  # fmt: skip

    def watched(self, run: Path, stage: str) -> Path:
        """The answers of a model to the comparisons that watch a training."""
        return run / (f"validate_{stage}" if self.profile.validation else f"eval_{stage}/sampled")

    def watch(self, run: Path, before: Path, title: str) -> Step:
        """The model of a round of DPO beside the one that it starts at, by what they write.

        `before`: the answers of the model that it starts at.
        """
        after, out = self.watched(run, "stage3"), run / WATCH_FILE
        command = (
            PYTHON, "scripts/check_model.py", "--before", str(before), "--after", str(after),
            "--out", str(out),
        )  # fmt: skip
        return Step(
            self._name(run, out.stem), title, command,
            (before / "summary.json", after / "summary.json"), done_file=out,
            exit_codes=(0, WORSE),
        )  # fmt: skip

    def pairs(self, run: Path, passes: Sequence[Path], earlier: Sequence[Path]) -> Step:
        """Pairs of texts of the model that is trained next, and wrong ones of an earlier model.

        Only the model that is trained next has right texts, so that the merger knows it.
        """
        profile, out = self.profile, run / "pairs"
        correct = [folder / "correct.jsonl" for folder in passes]
        incorrect = [folder / "incorrect.jsonl" for folder in (*earlier, *passes)]
        command = (
            PYTHON, "scripts/merge_json.py", "--config", str(profile.merge),
            "--correct", *map(str, correct), "--incorrect", *map(str, incorrect),
            *self._exclude_flags, "--media-root", str(profile.media_root), "--out", str(out),
        )  # fmt: skip
        return Step(
            self._name(run, "pairs"), "right and wrong texts about the same comparisons",
            command, (profile.merge, *correct, *incorrect, *self._kept_out),
            {"exclude_image_root": " ".join(self._kept_out_roots)},
            out, out / "summary.json",
        )  # fmt: skip

    def dpo(
        self, name: str, title: str, config: Path, start: Path, seed: int | None, run: Path
    ) -> Step:
        profile, out, rows = self.profile, run / name, run / "pairs/train.jsonl"
        launch = ["--config_file", str(profile.accelerate)]
        if self.gpus:
            launch += ["--num_processes", str(self.gpus)]
        else:
            launch += ["--num_cpu_threads_per_process", "1"]
        flags = {} if seed is None else {"seed": str(seed)}
        command = (
            ACCELERATE, "launch", "-q", *launch, "scripts/DPO_VL.py", "--config", str(config),
            "--model_name_or_path", str(start), "--data_path", str(rows),
            "--image_folder", str(profile.media_root), "--output_dir", str(out),
            *(part for key, value in flags.items() for part in (f"--{key}", value)),
        )  # fmt: skip
        return Step(
            self._name(run, name), title, command, (config, start, rows), flags, out,
            out / "summary.json", trains="dpo",
        )  # fmt: skip

    def report(self) -> Step:
        seeds = [str(seed) for seed in self.profile.seeds]
        command = [
            PYTHON, "scripts/report.py", "--runs", str(self.profile.runs),
            "--media-root", str(self.profile.media_root),
        ]  # fmt: skip
        if seeds:
            command += ["--seeds", *seeds]
        return Step("report", "the table, plots and page", tuple(command), always=True)

    def _name(self, run: Path, name: str) -> str:
        """The name of a step: its place below the folder of all results."""
        return (run / name).relative_to(self.profile.runs).as_posix()


def _assign(values: Mapping[str, str]) -> list[str]:
    """LLaMA-Factory's `key=value` arguments."""
    return [f"{key}={value}" for key, value in values.items()]
