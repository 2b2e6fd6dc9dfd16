"""Compare finished benchmark runs: scores with intervals, paired differences, published figures.

    python scripts/compare.py runs/eval/*/vl-rewardbench --out runs/compare
    python scripts/compare.py runs/eval_stage2/greedy runs/eval_stage3/greedy --names stage2 stage3

A run is a folder of scripts/evaluate.py, or of the client about labelled comparisons. Runs of one
model with several seeds become one. Writes comparison.json, comparison.md
and report.html.
"""

from cot_reward import errors, settings
from cot_reward.report.run import write_comparison
from cot_reward.report.settings import CompareSettings


def main() -> int:
    print(write_comparison(settings.parse(CompareSettings, __doc__ or "")), end="")
    return 0


if __name__ == "__main__":
    errors.run_script(main)
