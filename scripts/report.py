"""Table, plots and results.json of a finished demo.

python scripts/report.py --runs runs/demo --seeds 0 1 2
"""

from dataclasses import dataclass, field
from pathlib import Path

from cot_reward import errors, settings
from cot_reward.evaluation.page import write_report


@dataclass(frozen=True)
class ReportSettings:
    runs: Path = field(default=Path("runs/demo"), metadata={"help": "folder of the demo's runs"})
    seeds: list[int] = field(
        default_factory=lambda: [0], metadata={"help": "seeds to pool in the table"}
    )


def main() -> int:
    chosen = settings.parse(ReportSettings, __doc__ or "")
    print(write_report(chosen.runs, chosen.seeds))
    return 0


if __name__ == "__main__":
    errors.run_script(main)
