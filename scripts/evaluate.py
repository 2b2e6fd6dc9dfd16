"""Score a served model on a benchmark, by its own rule and strictly, both orders asked.

    python scripts/evaluate.py --benchmark list
    python scripts/evaluate.py --benchmark vl-rewardbench --template runs/template.txt \\
        --out runs/eval/mine/vl-rewardbench
    python scripts/evaluate.py --data dataset/pools/heldout.jsonl --out runs/eval/mine/heldout

The client asks as image_stream_gpt.py does (all of its flags work; a stopped run goes on). The
official score and the strict one stand beside each other, and are never mixed. Exit status: as the
client's.
"""

import os
from pathlib import Path

from cot_reward import errors, settings
from cot_reward.evaluation.run import evaluate, print_benchmarks
from cot_reward.evaluation.settings import BenchmarkSettings
from cot_reward.inference.settings import InferenceSettings


def main() -> int:
    asked, chosen = settings.parse_several(
        (InferenceSettings, BenchmarkSettings), __doc__ or "", config=Path("configs/evaluate.yaml")
    )
    if chosen.benchmark == "list":
        return print_benchmarks()
    return evaluate(asked, chosen, api_key=os.environ.get(asked.api_key_env, ""))


if __name__ == "__main__":
    errors.run_script(main)
