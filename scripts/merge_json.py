"""Join correct and incorrect chains of thought into DPO pairs.

    python scripts/merge_json.py                                     # configs/merge.yaml
    python scripts/merge_json.py --correct runs/stage3_infer/correct.jsonl \
        --incorrect runs/stage2_infer/incorrect.jsonl runs/stage3_infer/incorrect.jsonl \
        --out dataset/dpo
"""

from pathlib import Path

from cot_reward import settings
from cot_reward.merging import MergeSettings, merge


def main() -> int:
    return merge(settings.parse(MergeSettings, __doc__ or "", config=Path("configs/merge.yaml")))


if __name__ == "__main__":
    settings.run(main)
