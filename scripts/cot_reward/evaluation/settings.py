"""Settings of scripts/evaluate.py beside those of the client."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


def _setting(text: str, default: Any = None) -> Any:
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": text})
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class BenchmarkSettings:
    benchmark: str = _setting(
        "a benchmark (scripts/evaluate.py --benchmark list), or rows: the labelled comparisons of "
        "--data",
        "rows",
    )
    snapshot: list[Path] = _setting(
        "the benchmark's files, or a folder of them (default: by name from the hub)", []
    )
    split: str | None = _setting("split of the benchmark (default: its first)")
    frames: int = _setting("frames that a video is shown as", 8)
    any_rows: bool = _setting("go on with another number of rows than was published", False)
    allow_bad_items: bool = _setting("go on without the rows that cannot be used", False)

    def __post_init__(self) -> None:
        if self.frames < 2:
            raise ValueError(f"--frames must be 2 or more, is {self.frames}")
