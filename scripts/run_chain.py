"""The whole chain: cold start, rejection sampling, pairs, DPO and the table.

    scripts/chain.sh                          # configs/chain.yaml: the real one
    scripts/chain.sh --profile configs/demo   # in small; what `make demo` calls
    scripts/chain.sh --dry-run                # every step, what is done, and the exact commands

A step is skipped when it is done and its inputs are the ones that it was made from. A stopped chain
goes on where it was. Every key of a profile is also a flag, which wins.
"""

import os
from pathlib import Path

from cot_reward.chain.settings import Profile, Request
from cot_reward.errors import run_script
from cot_reward.settings import parse_several


def main() -> int:
    # A profile names configurations and commands from here, as scripts/chain.sh starts them.
    os.chdir(Path(__file__).parents[1])
    profile, request = parse_several(
        (Profile, Request), __doc__ or "", config=Path("configs/chain.yaml"),
        config_flag="--profile", config_name="chain.yaml",
    )  # fmt: skip
    from cot_reward.chain.run import run_chain

    return run_chain(profile, request)


if __name__ == "__main__":
    run_script(main)
