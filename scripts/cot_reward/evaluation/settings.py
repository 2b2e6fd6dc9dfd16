"""Settings of scripts/evaluate.py beside those of the client."""

from dataclasses import dataclass
from pathlib import Path

from cot_reward.settings import setting


@dataclass(frozen=True)
class BenchmarkSettings:
    benchmark: str = setting(
        "a benchmark (scripts/evaluate.py --benchmark list), or rows: the labelled comparisons of "
        "--data",
        "rows",
    )
    snapshot: list[Path] = setting(
        "the benchmark's files, or a folder of them (default: by name from the hub)", []
    )
    split: str | None = setting("split of the benchmark (default: its first)")
    frames: int = setting("frames that a video is shown as", 8)
    any_rows: bool = setting("go on with another number of rows than was published", False)
    allow_bad_items: bool = setting("go on without the rows that cannot be used", False)

    def __post_init__(self) -> None:
        if self.frames < 2:
            raise ValueError(f"--frames must be 2 or more, is {self.frames}")
