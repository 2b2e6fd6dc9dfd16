"""Table, plots and page of a finished chain, or the page of any finished folder.

    python scripts/report.py --runs runs
    python scripts/report.py --runs runs/demo --seeds 0 1 2
    python scripts/report.py runs/stage1_infer runs/pairs runs/stage3

A page is report.html in the folder, which any browser opens without a network. A folder is an
inference, a benchmark run, a merge, a training or a chain.
"""

from cot_reward import errors, settings
from cot_reward.report.run import report
from cot_reward.report.settings import ReportSettings


def main() -> int:
    print(report(settings.parse(ReportSettings, __doc__ or "")))
    return 0


if __name__ == "__main__":
    errors.run_script(main)
