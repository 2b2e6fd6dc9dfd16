"""Make the demo's data and its tiny base model, from a seed.

python scripts/make_demo.py --config configs/demo/world.yaml
python scripts/make_demo.py --config configs/demo/smoke/world.yaml --seed 1 --out /tmp/world/demo
"""

import sys
from pathlib import Path

from cot_reward import demo_world
from cot_reward.errors import run_script
from cot_reward.settings import parse


def main() -> int:
    assert __doc__ is not None
    config = Path("configs/demo/world.yaml")
    settings = parse(demo_world.Settings, __doc__, config=config)
    demo_world.write_data(settings, sys.argv)
    # Imported late, so that --help does not wait for torch.
    from cot_reward import demo_model

    demo_model.write_base(settings, sys.argv)
    return 0


if __name__ == "__main__":
    run_script(main)
