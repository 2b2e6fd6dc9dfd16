"""Make the demo's data and its tiny base model, both from a seed.

python scripts/make_demo.py --config configs/demo/world.yaml
python scripts/make_demo.py --config configs/demo/smoke/world.yaml --seed 1 --out /tmp/world/demo
"""

import sys
from pathlib import Path

from cot_reward.demo.run import make_demo
from cot_reward.demo.settings import BaseSettings, WorldSettings
from cot_reward.errors import run_script
from cot_reward.settings import parse_several


def main() -> int:
    world, base = parse_several(
        (WorldSettings, BaseSettings), __doc__ or "", config=Path("configs/demo/world.yaml")
    )
    return make_demo(world, base, sys.argv)


if __name__ == "__main__":
    run_script(main)
