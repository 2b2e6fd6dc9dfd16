"""The settings of the chain: a profile (YAML) says which data, models and machines; flags win."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cot_reward.inference.settings import Until


def _setting(text: str, **default: Any) -> Any:
    return field(metadata={"help": text}, **default)


@dataclass(frozen=True)
class Profile:
    """What a chain is made of. Every key of a profile is also a flag of scripts/chain.sh."""

    # model and data
    base: str = _setting("base model: a folder, or a name on the Hugging Face hub")
    cold_start: Path = _setting("rows of stage 1: chains of thought by a teacher")
    sampling: list[Path] = _setting("labelled comparisons that stage 1's model answers")
    heldout: list[Path] = _setting("labelled comparisons for the table, and for no training")
    runs: Path = _setting("folder of all results")
    media_root: Path = _setting(
        "folder to which all written media paths are relative", default=Path("dataset")
    )
    cold_start_media_root: Path | None = _setting(
        "folder of the cold-start rows' media paths (default: the media root)", default=None
    )
    sampling_image_root: list[Path] = _setting(
        "folders of the sampling files' media paths: one for all, or one for each file",
        default_factory=list,
    )
    heldout_image_root: Path | None = _setting(
        "folder of the held-out files' media paths (default: the media root)", default=None
    )
    validation: list[Path] = _setting(
        "labelled comparisons to compare stages 2 and 3, and rounds of DPO, on (default: the "
        "held-out ones)",
        default_factory=list,
    )
    validation_image_root: Path | None = _setting(
        "folder of the validation files' media paths (default: the media root)", default=None
    )
    world: Path | None = _setting(
        "settings of a toy world: data and base are made first", default=None
    )
    world_family: str = _setting(
        "with --world: the family of its base (default: the settings')", default=""
    )
    seeds: list[int] = _setting(
        "train once with each seed, below RUNS/seedN (default: once, with the seeds of the YAMLs)",
        default_factory=list,
    )

    # what each step reads
    stage1: Path = _setting(
        "LLaMA-Factory YAML of stage 1", default=Path("configs/qwen_cold_start.yaml")
    )
    stage1_export: Path | None = _setting("YAML that merges stage 1's adapter", default=None)
    stage2: Path = _setting("LLaMA-Factory YAML of stage 2", default=Path("configs/rejection.yaml"))
    stage2_export: Path | None = _setting("YAML that merges stage 2's adapter", default=None)
    sft_template: str = _setting(
        "LLaMA-Factory's template of the base's family (default: the YAMLs')", default=""
    )
    inference: Path = _setting("YAML of every inference", default=Path("configs/inference.yaml"))
    merge: Path = _setting("YAML of the merger", default=Path("configs/merge.yaml"))
    stage3: Path = _setting("YAML of stage 3 (DPO)", default=Path("configs/dpo.yaml"))
    rounds: int = _setting(
        "rounds of DPO: each later one starts at the model before, and ends a run's rounds where "
        "validation no longer rises",
        default=1,
    )
    control: Path | None = _setting(
        "YAML of a control: the same rows as stage 3 without the rejected texts", default=None
    )
    control_rejection: Path | None = _setting(
        "LLaMA-Factory YAML of a control: stage 2's model trained on its own right texts",
        default=None,
    )
    control_rejection_export: Path | None = _setting(
        "YAML that merges this control's adapter", default=None
    )
    compared: list[Path] = _setting(
        "folders of other models, such as released ones, that answer the held-out data as well",
        default_factory=list,
    )
    compared_template: Path | None = _setting(
        "their prompt (default: that of the cold-start rows)", default=None
    )
    accelerate: Path = _setting(
        "accelerate's launch file for stage 3", default=Path("configs/accelerate/zero2.yaml")
    )

    # sampling
    samples: int = _setting("first pass: texts for each comparison and order", default=4)
    temperature: float = _setting("first pass: sampling temperature", default=1.0)
    second_pass: Literal["all", "wrong", "none"] = _setting(
        "which comparisons of the first pass stage 2's model answers again", default="all"
    )
    fresh: list[Path] = _setting(
        "further labelled comparisons for stage 2's model", default_factory=list
    )
    fresh_image_root: Path | None = _setting(
        "folder of these files' media paths (default: the media root)", default=None
    )
    second_samples: int = _setting("second pass: texts for each comparison and order", default=4)
    second_temperature: float = _setting("second pass: sampling temperature", default=1.0)
    hot_samples: int = _setting(
        "the second pass once more at another temperature: texts (0: not at all)", default=0
    )
    hot_temperature: float = _setting("temperature of these texts", default=1.3)
    min_parsed: float = _setting(
        "share of readable answers below which a pass of sampling ends the chain", default=0.5
    )
    eval_samples: int = _setting("texts for each held-out comparison and order at T=1", default=4)
    until: Until = _setting(
        "passes of sampling: ask about a comparison and order until it has such usable texts",
        default="off",
    )
    first: int = _setting("with until: texts of each round", default=2)

    # machines
    gpus: int | None = _setting("GPUs to use (default: all that are found)", default=None)
    tensor_parallel: int = _setting("GPUs that one copy of a served model is split over", default=1)
    data_parallel: int | None = _setting(
        "copies of a served model (default: as many as fit on the GPUs)", default=None
    )
    port: int | None = _setting(
        "port of the servers (default: a free one for each server)", default=None
    )
    serve_flags: list[str] = _setting("further flags of vLLM", default_factory=list)
    base_url: list[str] = _setting(
        "servers that run elsewhere; they must list the model of the step by its folder's name",
        default_factory=list,
    )

    def __post_init__(self) -> None:
        counts = "samples", "second_samples", "eval_samples", "tensor_parallel", "first", "rounds"
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 1 or more")
        for name in ("hot_samples", "gpus", "data_parallel"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 or more")
        most = max(self.samples, self.second_samples, self.hot_samples)
        if self.until != "off" and self.first >= most:
            raise ValueError(
                f"until is {self.until} and first {self.first}, which is already every text of "
                f"passes of {most}; give a smaller first, or more samples"
            )
        if self.second_pass == "none" and not self.fresh:
            raise ValueError(
                "second_pass is none and fresh is empty: stage 2's model would answer nothing; "
                "name fresh data, or set second_pass to all or wrong"
            )
        if len(self.seeds) != len(set(self.seeds)):
            raise ValueError(f"seeds {self.seeds}: each seed may stand there once")
        names = [model.name for model in self.compared]
        if len(set(names)) < len(names):
            raise ValueError(f"compared has two folders of one name: {', '.join(names)}")
        if len(self.sampling_image_root) not in (0, 1, len(self.sampling)):
            raise ValueError(
                f"sampling has {len(self.sampling)} files and sampling_image_root "
                f"{len(self.sampling_image_root)} folders; give one folder for all, or one for each"
            )


@dataclass(frozen=True)
class Request:
    """What this start is to do.

    A step's name is `stage1`, or `seed0/stage1` for one seed; of a later round `round2/stage3`.
    """

    first: str | None = field(default=None, metadata={"help": "first step to run", "name": "from"})
    last: str | None = field(default=None, metadata={"help": "last step to run", "name": "to"})
    only: list[str] = field(default_factory=list, metadata={"help": "these steps alone"})
    dry_run: bool = field(
        default=False,
        metadata={"help": "print every step, what is done and what is left; start nothing"},
    )
    adopt: bool = field(
        default=False,
        metadata={"help": "take results that were made by hand as the results of their steps"},
    )
