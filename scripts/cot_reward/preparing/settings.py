"""Settings of scripts/prepare_data.py."""

import os
import re
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path

from cot_reward.errors import nearest
from cot_reward.media.images import MAX_PIXELS
from cot_reward.preparing.mapping import ColumnMap
from cot_reward.rows.file_flags import check_held_out_roots
from cot_reward.rows.labels import parse_meanings
from cot_reward.settings import setting
from cot_reward.tasks import TASKS


@dataclass(frozen=True)
class ComparisonFiles:
    """Files of comparisons, and how their rows are read."""

    files: list[Path] = field(metadata={"help": "file of comparisons", "positional": True})
    _: KW_ONLY
    media_root: Path = setting("folder that all media lie below", Path("dataset"))
    image_root: Path | None = setting(
        "what the media paths of raw rows are relative to (default: the media root)"
    )
    task: str | None = setting("the task of rows that do not name one: " + ", ".join(TASKS))
    labels: list[str] = setting("what labels mean: VALUE=1, VALUE=2, VALUE=tie or VALUE=bad", [])

    def __post_init__(self) -> None:
        if self.task is not None and self.task not in TASKS:
            raise ValueError(f"--task: no task is called '{self.task}'.{nearest(self.task, TASKS)}")
        parse_meanings(self.labels)


@dataclass(frozen=True)
class LookSettings:
    files: list[Path] = field(metadata={"help": "file of a data set", "positional": True})
    rows: int = setting("rows that are read of each file", 1000)

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise ValueError(f"--rows must be 1 or more, is {self.rows}")


@dataclass(frozen=True)
class CheckSettings(ComparisonFiles):
    against: list[str] = setting(
        "held-out files or globs, of benchmarks too: which comparisons, pictures and texts are in "
        "both",
        [],
    )
    against_image_root: list[Path] = setting(
        "what the paths of their raw rows are relative to: one folder for all, or one for each "
        "(default: --image-root)",
        [],
    )
    out: Path | None = setting("JSONL file of all that was found, with its place")
    workers: int = setting("threads that decode pictures", os.cpu_count() or 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_held_out_roots(self.against, self.against_image_root, "--against")
        if self.workers < 1:
            raise ValueError(f"--workers must be 1 or more, is {self.workers}")


@dataclass(frozen=True)
class DownloadSettings:
    name: str = field(
        metadata={"help": "a set of `list`, or OWNER/NAME on the hub", "positional": True}
    )
    accept: bool = setting("fetch it, after its size and licence were read", False)
    out: Path | None = setting("folder of the files (default: dataset/ and the set's own name)")
    files: list[str] = setting("patterns of the files to fetch (default: all)", [])
    revision: str | None = setting("commit, tag or branch (default: the newest)")
    workers: int = setting("files that are fetched at a time", 4)

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"--workers must be 1 or more, is {self.workers}")


@dataclass(frozen=True)
class RegisterSettings:
    file: Path = field(metadata={"help": "file of SFT or DPO rows", "positional": True})
    name: str = field(metadata={"help": "name of the data set (`dataset:` in a training's YAML)"})
    media_root: Path = setting("folder of dataset_info.json (`dataset_dir`)", Path("dataset"))
    replace: bool = setting("replace another data set of this name", False)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w-]+", self.name):
            raise ValueError(f"--name {self.name!r}: must be letters, digits, _ and -")


@dataclass(frozen=True)
class PoolSettings(ComparisonFiles):
    pools: list[str] = field(metadata={"help": "NAME=NUMBER of comparisons of each pool"})
    out: Path = setting("folder of the pools", Path("dataset/pools"))
    weights: list[float] = setting(
        "of each file, in order: its share of every pool (default: its number of comparisons)",
        [],
    )
    seed: int = setting("of the draw", 0)

    @property
    def sizes(self) -> dict[str, int]:
        """The number of comparisons of each pool."""
        return {name: int(number) for name, _, number in (p.partition("=") for p in self.pools)}

    def __post_init__(self) -> None:
        super().__post_init__()
        for text in self.pools:
            name, _, number = text.partition("=")
            if not re.fullmatch(r"[\w-]+", name) or not number.isdecimal() or not int(number):
                raise ValueError(f"--pools {text}: must be NAME=NUMBER, the number 1 or more")
        if len(self.sizes) < len(self.pools):
            raise ValueError("--pools names a pool twice")
        if len(self.weights) not in (0, len(self.files)):
            raise ValueError(
                f"--weights has {len(self.weights)} numbers for {len(self.files)} files"
            )
        if self.weights and (min(self.weights) < 0 or not sum(self.weights)):
            raise ValueError("--weights must be 0 or more, and one of them more than 0")


@dataclass(frozen=True)
class ConvertSettings(ComparisonFiles):
    files: list[Path] = field(
        metadata={
            "help": "JSON, JSONL, Parquet, Arrow, CSV, TSV or WebDataset tar file",
            "positional": True,
        }
    )
    out: Path = setting("folder of the rows", Path("dataset/prepared"))
    columns: list[str] = setting(
        "where a comparison stands: text=COLUMN first=COLUMN second=COLUMN label=COLUMN (or "
        "first_score=, second_score=; context=); of candidates that are rows of their own "
        "text=, medium=, group=, and rank= or score=. A column may be nested (response.0), a part "
        "of a list (frames.:8), const:VALUE, or COLUMN~PATTERN (the group of a regular expression)",
        [],
        name="map",
    )
    tie_margin: float = setting("scores that differ by this or less are a tie", 0.0)
    groups_apart: bool = setting(
        "rows of a group may stand anywhere in the file, whose rows are then held in memory", False
    )
    group_pairs: int = setting("most pairs of a group of ranked candidates; 0: all", 0)
    frames: int = setting("frames that a video is shown as, 2 or more", 8)
    max_pixels: int = setting("most pixels of a frame", MAX_PIXELS)
    limit: int | None = setting("stop after this many comparisons")
    shard_rows: int = setting("rows of an output file", 100_000)
    max_bad_rows: float = setting("share of bad rows from which the exit code is 3", 0.01)
    workers: int = setting("threads that decode media", os.cpu_count() or 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.frames < 2:
            raise ValueError(f"--frames must be 2 or more, is {self.frames}")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"--limit must be 1 or more, is {self.limit}")
        for name in ("workers", "shard_rows", "max_pixels"):
            if getattr(self, name) < 1:
                flag = name.replace("_", "-")
                raise ValueError(f"--{flag} must be 1 or more, is {getattr(self, name)}")
        for name in ("tie_margin", "group_pairs", "max_bad_rows"):
            if getattr(self, name) < 0:
                flag = name.replace("_", "-")
                raise ValueError(f"--{flag} must be 0 or more, is {getattr(self, name)}")
        if self.columns:
            ColumnMap(self.columns, self.tie_margin)
