"""Join correct and incorrect chains of thought into DPO pairs.

    python scripts/merge_json.py                                     # configs/merge.yaml
    python scripts/merge_json.py --correct runs/stage2_infer/correct.jsonl \\
        --incorrect runs/stage1_infer/incorrect.jsonl runs/stage2_infer/incorrect.jsonl \\
        --out dataset/dpo

`--shard 1/8` to `8/8` merge on eight machines; `--join FOLDER ... --out FOLDER` puts the eight
folders together.
`--report FILE [--json] [--seed N]` audits a file of pairs instead, as scripts/audit_pairs.py does.
"""

import sys
from pathlib import Path

from cot_reward import errors, settings
from cot_reward.pairing.settings import AuditSettings, JoinSettings, MergeSettings


def main() -> int:
    about = __doc__ or ""
    # The file behind --report is the argument of the audit.
    audit_flags = [word.removeprefix("--report=") for word in sys.argv[1:] if word != "--report"]
    if audit_flags != sys.argv[1:]:
        audit_settings = settings.parse(AuditSettings, about, argv=audit_flags)
        from cot_reward.pairing.audit import print_audit  # neither imports what the other needs

        return print_audit(audit_settings)
    if _joins(sys.argv[1:]):
        join_settings = settings.parse(JoinSettings, about)
        from cot_reward.pairing.joining.run import join

        return join(join_settings)
    merge_settings = settings.parse(MergeSettings, about, config=Path("configs/merge.yaml"))
    from cot_reward.pairing.run import merge

    return merge(merge_settings)


def _joins(argv: list[str]) -> bool:
    """Whether shares are named, by the flag or in the YAML file."""
    if any(word.split("=")[0] == "--join" for word in argv):
        return True
    parser = settings.Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", type=Path)
    path = parser.parse_known_args(argv)[0].config
    return path is not None and "join" in settings.read_yaml(path)


if __name__ == "__main__":
    errors.run_script(main)
