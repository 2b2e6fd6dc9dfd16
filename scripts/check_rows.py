"""Check training rows and their media before a training step.

    python scripts/check_rows.py dataset/ImageGen-CoT-Reward-5K/train_data.json
    python scripts/check_rows.py runs/stage1_infer/correct.jsonl --exclude dataset/heldout.json

Reads SFT rows (conversations, images, videos) and DPO rows (problem, chosen, rejected, images; or
in the forms of LLaMA-Factory, TRL and ms-swift), as JSON, JSONL or Parquet: fields and their types,
one placeholder per medium, and the media. Every image must lie below the media root and decode
fully. Every video must lie below the media root and not be empty; videos are not decoded. With
--exclude no row may be about a comparison of the held-out files. Exit status: 0 clean, 1 problems,
2 cannot check.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path

from cot_reward.errors import run_script
from cot_reward.rows.file_flags import check_held_out_roots
from cot_reward.settings import parse


@dataclass(frozen=True)
class CheckSettings:
    files: list[Path] = field(metadata={"help": "JSON, JSONL or Parquet file", "positional": True})
    media_root: Path = field(
        default=Path("dataset"),
        metadata={"help": "folder that media paths are relative to", "aliases": ["image_folder"]},
    )
    exclude: list[str] = field(
        default_factory=list,
        metadata={"help": "held-out files or globs: no row may be about their comparisons"},
    )
    exclude_image_root: list[Path] = field(
        default_factory=list,
        metadata={
            "help": "what the paths of their raw rows are relative to: one folder for all, or one "
            "for each (default: the media root)"
        },
    )
    show: int = field(default=10, metadata={"help": "problems to print"})
    workers: int = field(default=os.cpu_count() or 1, metadata={"help": "decoding threads"})

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"--workers must be 1 or more, is {self.workers}")
        check_held_out_roots(self.exclude, self.exclude_image_root)


def main() -> int:
    settings = parse(CheckSettings, __doc__ or "")
    from cot_reward.rows.checking import report_problems  # Pillow, which --help does not need

    return report_problems(
        settings.files, settings.media_root, settings.workers, settings.show,
        settings.exclude, settings.exclude_image_root,
    )  # fmt: skip


if __name__ == "__main__":
    run_script(main)
