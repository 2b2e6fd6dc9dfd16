"""Join correct and incorrect chains of thought into DPO pairs, or audit a file of pairs.

    python scripts/merge_json.py                                     # configs/merge.yaml
    python scripts/merge_json.py --correct runs/stage2_infer/correct.jsonl \\
        --incorrect runs/stage1_infer/incorrect.jsonl runs/stage2_infer/incorrect.jsonl \\
        --out dataset/dpo
    python scripts/merge_json.py --report dataset/dpo/train.jsonl    # changes nothing; --json
"""

import sys
from pathlib import Path

from cot_reward import errors, settings
from cot_reward.pairing.settings import MergeSettings, ReportSettings


def main() -> int:
    about = __doc__ or ""
    if any(word.split("=")[0] == "--report" for word in sys.argv[1:]):
        asked = settings.parse(ReportSettings, about)
        from cot_reward.pairing.audit import report  # neither imports what the other needs

        return report(asked)
    wanted = settings.parse(MergeSettings, about, config=Path("configs/merge.yaml"))
    from cot_reward.pairing.run import merge

    return merge(wanted)


if __name__ == "__main__":
    errors.run_script(main)
