"""Stage 3's own settings; TRL's flags and the parsing are in `trl_settings`.

Nothing here imports torch, transformers or TRL, so that `--help` takes a fraction of a second.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


def _help(text: str, **default: Any) -> Any:
    return field(metadata={"help": text}, **default)


@dataclass
class DpoSettings:
    """The settings that TRL's dataclasses do not have."""

    data_path: str = _help(
        "DPO rows to train on, ours or in the form of LLaMA-Factory, TRL or ms-swift: a JSON, "
        "JSONL or Parquet file"
    )
    eval_data_path: str | None = _help(
        "DPO rows to evaluate on, by default after every epoch (--eval_strategy)", default=None
    )
    image_folder: str = _help(
        "folder that the rows' image paths are relative to", default="dataset"
    )
    image_max_pixels: int = _help(
        "larger images are resized to this many pixels, as in SFT and inference", default=262144
    )
    skip_bad_rows: bool = _help(
        "train on the usable rows and count the others; off: a bad row is an error", default=False
    )
    shared_prefix: bool = _help(
        "run the prompt of a pair once a step; off: TRL's own forward and batches, which run it "
        "for each response",
        default=True,
    )
    reference_cache: bool = _help(
        "compute reference log-probs once, before training, and keep them on disk; off: a "
        "reference model runs next to the policy",
        default=True,
    )
    reference_cache_dir: str | None = _help(
        "folder of the kept log-probs and of the list of images that were found sound (default: "
        "reference_cache, next to the output_dir)",
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
    groups: bool = _help(
        "run all pairs about one prompt in one row, in which the prompt and each text stand once; "
        "--per_device_train_batch_size then counts groups",
        default=False,
    )
    max_row_tokens: int | None = _help(
        "with --groups: a group of more tokens becomes several rows, with its prompt in each",
        default=None,
    )
    weigh: str = _help(
        "what weighs the same in the losses: every pair, or every comparison, whatever the number "
        "of its pairs",
        default="pair",
    )
    preference_tokens: str = _help(
        "the tokens by which chosen and rejected are compared: all, of the whole texts, as TRL "
        "does; first_difference, from where they differ to where they agree again; or uncertain, "
        "those that the reference gave a probability below 0.9; with these two of the answers "
        "alone where the rejected text contradicts its own totals. The loss sft has the whole "
        "chosen text",
        default="all",
    )
    agreement_steps: int = _help(
        "every so many optimiser steps, and before the first one, write greedy texts and log how "
        "many are right, well-formed, coherent with their own totals, and answer 1; 0: never",
        default=0,
    )
    agreement_rows: int = _help(
        "with --agreement_steps: so many prompts of the rows to evaluate on (without any: to train "
        "on)",
        default=16,
    )
    freeze_vision_tower: bool = _help("do not train the vision tower", default=True)
    freeze_multi_modal_projector: bool = _help(
        "do not train the projector between vision tower and text model", default=True
    )

    def __post_init__(self) -> None:
        if self.image_max_pixels < 1:
            raise ValueError(f"image_max_pixels is {self.image_max_pixels}; it must be positive")

    def of_rows(self) -> dict[str, Any]:
        """What `groups.make_rows` is told."""
        names = ("groups", "weigh", "max_row_tokens")
        return {name: getattr(self, name) for name in names}

    def cache_folder(self, output: Path) -> Path:
        """The folder of what later runs need not compute again; `output` is the output_dir."""
        return Path(self.reference_cache_dir or output.parent / "reference_cache")
