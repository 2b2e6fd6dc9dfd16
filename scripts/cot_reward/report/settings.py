"""Settings of scripts/compare.py and scripts/report.py."""

from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any


def _setting(text: str, default: Any = None) -> Any:
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": text})
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Shown:
    """What a page shows."""

    _: KW_ONLY
    media_root: Path = _setting("folder that the rows' media lie below", Path("dataset"))
    samples: int = _setting("texts of each model and order on the page", 2)
    limit: int = _setting("most items, and most pairs, on the page", 5_000)

    def __post_init__(self) -> None:
        for name in ("samples", "limit"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} must be 1 or more, is {getattr(self, name)}")


@dataclass(frozen=True)
class CompareSettings(Shown):
    runs: list[Path] = field(metadata={"help": "folder of a finished run", "positional": True})
    _: KW_ONLY
    names: list[str] = _setting("name of each run's model (default: of the folders)", [])
    out: Path = _setting("folder of the result", Path("runs/compare"))
    common: bool = _setting("compare the items that all models have texts about", False)
    page: bool = _setting("write report.html", True)
    published: Path | None = _setting(
        "YAML file of published figures", Path("configs/published.yaml")
    )


@dataclass(frozen=True)
class ReportSettings(Shown):
    folders: list[Path] = field(
        default_factory=list,
        metadata={
            "help": "finished inference, merge, training or chain whose page is wanted",
            "positional": True,
        },
    )
    _: KW_ONLY
    runs: Path = _setting("without folders: the chain's results", Path("runs"))
    seeds: list[int] = _setting("pool the runs in RUNS/seedN (default: the run in RUNS itself)", [])
    out: Path | None = _setting("folder of the page (default: the folder itself)")
    page: bool = _setting("write report.html for a chain", True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.out and len(self.folders) > 1:
            raise ValueError("--out is for the page of one folder")
