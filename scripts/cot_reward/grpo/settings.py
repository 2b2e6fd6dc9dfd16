"""The settings of GRPO; TRL's flags and the parsing are in `trl_settings`.

Nothing here imports torch, transformers or TRL, so that `--help` takes a fraction of a second.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cot_reward.records import ORDERS, Order
from cot_reward.rows.file_flags import check_held_out_roots
from cot_reward.rows.labels import parse_meanings


def _help(text: str, **default: Any) -> Any:
    return field(metadata={"help": text}, **default)


@dataclass
class GrpoSettings:
    """The settings that TRL's dataclasses do not have."""

    data_path: list[str] = _help(
        "comparisons to ask: raw, judged or published rows (problem, solution, images), in JSON, "
        "JSONL or Parquet files"
    )
    eval_data_path: list[str] = _help(
        "comparisons to evaluate on, by default after every epoch (--eval_strategy)",
        default_factory=list,
    )
    exclude: list[str] = _help(
        "held-out files of any form, or globs: their comparisons are not trained on",
        default_factory=list,
    )
    exclude_image_root: list[str] = _help(
        "folder of these files' media paths: one for all, or one for each (default: image_root)",
        default_factory=list,
    )
    image_folder: str = _help(
        "the media root: folder that the rows' image paths are relative to", default="dataset"
    )
    image_root: str | None = _help(
        "folder, below image_folder, of the media paths of raw and published rows (default: "
        "image_folder)",
        default=None,
    )
    image_max_pixels: int = _help(
        "larger images are resized to this many pixels, as in SFT and inference", default=262144
    )
    adapter: str | None = _help(
        "how raw rows are read (default: found from the rows)", default=None
    )
    task: str | None = _help("task of the raw rows that do not name one", default=None)
    labels: list[str] = _help(
        "what each raw label means: VALUE=1, VALUE=2, VALUE=tie, VALUE=bad (default: as the "
        "adapter knows them)",
        default_factory=list,
    )
    template: list[str] = _help(
        "prompt template file, for all tasks or as TASK=FILE for one (default: template.txt in the "
        "model's folder, else our own)",
        default_factory=list,
    )
    orders: str = _help(
        "presentation orders that are asked: given, swapped or both", default="both"
    )
    limit: int | None = _help("number of questions to keep (default: all)", default=None)
    skip_bad_rows: bool = _help(
        "train on the usable rows and count the others; off: a bad row is an error", default=False
    )
    reward_incoherent: float = _help(
        "reward of a right answer that its own totals contradict (tie and wrong sum, too); a right "
        "and coherent one has 1, a wrong one 0; the published method: 1",
        default=0.0,
    )
    reward_format: float = _help(
        "added for a well-formed text, right or wrong; the published method: 1", default=0.0
    )
    min_parsed: float = _help(
        "the run stops when a smaller share of its first texts has a readable answer; 0: never",
        default=0.1,
    )
    max_minutes: float | None = _help(
        "train for so many minutes: the step that is under way then is the last (default: all "
        "steps)",
        default=None,
    )
    overwrite_output_dir: bool = _help(
        "remove the result of another run (its model and checkpoints) from output_dir before the "
        "first step; off: such a folder is an error",
        default=False,
    )
    merge_adapter: bool = _help(
        "with LoRA: write the merged model into output_dir and the adapter into its folder "
        "adapter/",
        default=False,
    )
    freeze_vision_tower: bool = _help("do not train the vision tower", default=True)
    freeze_multi_modal_projector: bool = _help(
        "do not train the projector between vision tower and text model", default=True
    )

    def __post_init__(self) -> None:
        parse_meanings(self.labels)
        for name in ("data_path", "eval_data_path", "exclude", "exclude_image_root", "template"):
            # In YAML one file may stand without a list.
            if isinstance(getattr(self, name), str):
                setattr(self, name, [getattr(self, name)])
        check_held_out_roots(self.exclude, list(map(Path, self.exclude_image_root)))
        if self.orders not in (*ORDERS, "both"):
            raise ValueError(f"orders is {self.orders!r}; it must be given, swapped or both")
        for name, least in (("image_max_pixels", 1), ("limit", 1)):
            if getattr(self, name) is not None and getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if self.max_minutes is not None and not self.max_minutes > 0:
            raise ValueError(f"max_minutes is {self.max_minutes}; it must be above 0")
        if not 0 <= self.min_parsed <= 1:
            raise ValueError(f"min_parsed is {self.min_parsed}; it must be between 0 and 1")
        if not 0 <= self.reward_incoherent <= 1:
            raise ValueError(
                f"reward_incoherent is {self.reward_incoherent}; it must be between 0, the reward "
                "of a wrong answer, and 1, that of a right and coherent one"
            )
        if not self.reward_format >= 0:
            raise ValueError(f"reward_format is {self.reward_format}; it must not be below 0")

    @property
    def asked_orders(self) -> tuple[Order, ...]:
        return tuple(order for order in ORDERS if self.orders in (order, "both"))

    @property
    def raw_root(self) -> Path:
        """The folder of the media paths of raw and published rows."""
        return Path(self.image_root or self.image_folder)
