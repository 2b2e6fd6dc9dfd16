"""Table, plots and results.json of a finished chain.

python scripts/report.py --runs runs
python scripts/report.py --runs runs/demo --seeds 0 1 2
"""

from dataclasses import dataclass, field
from pathlib import Path

from cot_reward import errors, settings
from cot_reward.evaluation.page import write_report


@dataclass(frozen=True)
class ReportSettings:
    runs: Path = field(default=Path("runs"), metadata={"help": "folder of the chain's results"})
    seeds: list[int] = field(
        default_factory=list,
        metadata={"help": "pool the runs in RUNS/seedN (default: the run in RUNS itself)"},
    )


def main() -> int:
    chosen = settings.parse(ReportSettings, __doc__ or "")
    print(write_report(chosen.runs, chosen.seeds))
    return 0


if __name__ == "__main__":
    errors.run_script(main)
