"""Settings of scripts/prepare_data.py."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cot_reward.errors import nearest
from cot_reward.media.images import MAX_PIXELS
from cot_reward.preparing.mapping import ColumnMap
from cot_reward.rows.labels import parse_meanings
from cot_reward.tasks import TASKS


def _setting(text: str, default: Any = None, **metadata: Any) -> Any:
    metadata = {"help": text, **metadata}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class LookSettings:
    files: list[Path] = field(metadata={"help": "file of a data set", "positional": True})
    rows: int = _setting("rows that are read of each file", 1000)

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise ValueError(f"--rows must be 1 or more, is {self.rows}")


@dataclass(frozen=True)
class ConvertSettings:
    files: list[Path] = field(
        metadata={
            "help": "JSON, JSONL, Parquet, Arrow, CSV, TSV or WebDataset tar file",
            "positional": True,
        }
    )
    out: Path = _setting("folder below the media root for rows and media", Path("dataset/prepared"))
    media_root: Path = _setting("folder that all media lie below", Path("dataset"))
    image_root: Path | None = _setting(
        "what the media paths of the rows are relative to (default: the media root)"
    )
    task: str | None = _setting("the task of all rows: " + ", ".join(TASKS))
    columns: list[str] = _setting(
        "where a comparison stands: text=COLUMN first=COLUMN second=COLUMN label=COLUMN (or "
        "first_score=, second_score=; context=); of candidates that are rows of their own "
        "text=, medium=, group=, and rank= or score=. A column may be nested (response.0) or "
        "const:VALUE",
        [],
        name="map",
    )
    labels: list[str] = _setting("what labels mean: VALUE=1, VALUE=2, VALUE=tie or VALUE=bad", [])
    tie_margin: float = _setting("scores that differ by this or less are a tie", 0.0)
    group_pairs: int = _setting("most pairs of a group of ranked candidates; 0: all", 0)
    frames: int = _setting("frames that a video is shown as", 8)
    max_pixels: int = _setting("most pixels of a frame", MAX_PIXELS)
    limit: int | None = _setting("stop after this many comparisons")
    shard_rows: int = _setting("rows of an output file", 100_000)
    max_bad_rows: float = _setting("share of bad rows from which the exit code is 3", 0.01)
    workers: int = _setting("threads that decode media", os.cpu_count() or 1)

    def __post_init__(self) -> None:
        if self.task is not None and self.task not in TASKS:
            raise ValueError(f"--task: no task is called '{self.task}'.{nearest(self.task, TASKS)}")
        for name in ("workers", "frames", "shard_rows", "max_pixels"):
            if getattr(self, name) < 1:
                flag = name.replace("_", "-")
                raise ValueError(f"--{flag} must be 1 or more, is {getattr(self, name)}")
        for name in ("tie_margin", "group_pairs", "max_bad_rows"):
            if getattr(self, name) < 0:
                flag = name.replace("_", "-")
                raise ValueError(f"--{flag} must be 0 or more, is {getattr(self, name)}")
        parse_meanings(self.labels)
        if self.columns:
            ColumnMap(self.columns, self.tie_margin)
