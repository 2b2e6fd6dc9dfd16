"""Make the demo's data, then its base model: what scripts/make_demo.py does."""

from cot_reward.demo import world
from cot_reward.demo.settings import BaseSettings, WorldSettings


def make_demo(
    world_settings: WorldSettings, base_settings: BaseSettings, command: list[str]
) -> int:
    """Write both folders, each with its summary last; returns the exit code. Raises UserError."""
    world.write_data(world_settings, command)
    # Imported late: an error in the data is shown before torch is loaded.
    from cot_reward.demo.pretrain import write_base

    write_base(world_settings, base_settings, command)
    return 0
