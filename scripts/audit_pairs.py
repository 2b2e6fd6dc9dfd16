"""Audit DPO rows, ours or another project's: what a model would learn from them.

    python scripts/audit_pairs.py dataset/dpo/train.jsonl
    python scripts/audit_pairs.py pairs.parquet --json --seed 1

Prints counts of the judge's findings on both sides, of answers, lengths and duplicates, and how
often a classifier tells chosen from rejected without an image. It reads the forms of LLaMA-Factory,
TRL and ms-swift, too, and changes no file. Exit status: 0 done, 1 no row of a file is a pair, 2
cannot read. `merge_json.py --report FILE` does the same.
"""

from cot_reward.errors import run_script
from cot_reward.pairing.settings import AuditSettings
from cot_reward.settings import parse


def main() -> int:
    settings = parse(AuditSettings, __doc__ or "")
    from cot_reward.pairing.audit import print_audit  # NumPy and orjson, which --help does not need

    return print_audit(settings)


if __name__ == "__main__":
    run_script(main)
