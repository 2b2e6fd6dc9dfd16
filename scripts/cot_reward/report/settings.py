"""Settings of scripts/compare.py and scripts/report.py."""

from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path

from cot_reward.settings import setting


@dataclass(frozen=True)
class Shown:
    """What a page shows."""

    _: KW_ONLY
    media_root: Path = setting("folder that the rows' media lie below", Path("dataset"))
    samples: int = setting("texts of each model and order on the page", 2)
    limit: int = setting("most items, and most pairs, on the page", 5_000)

    def __post_init__(self) -> None:
        for name in ("samples", "limit"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} must be 1 or more, is {getattr(self, name)}")


@dataclass(frozen=True)
class CompareSettings(Shown):
    runs: list[Path] = field(metadata={"help": "folder of a finished run", "positional": True})
    _: KW_ONLY
    names: list[str] = setting("name of each run's model (default: of the folders)", [])
    out: Path = setting("folder of the result", Path("runs/compare"))
    common: bool = setting("compare the items that all models have texts about", False)
    page: bool = setting("write report.html", True)
    published: Path | None = setting(
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
    runs: Path = setting("without folders: the chain's results", Path("runs"))
    seeds: list[int] = setting("pool the runs in RUNS/seedN (default: the run in RUNS itself)", [])
    out: Path | None = setting("folder of the page (default: the folder itself)")
    page: bool = setting("write report.html for a chain", True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.out and len(self.folders) > 1:
            raise ValueError("--out is for the page of one folder")
