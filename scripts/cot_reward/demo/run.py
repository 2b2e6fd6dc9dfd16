"""Make the demo's data, then its base model."""

from cot_reward.demo import world
from cot_reward.demo.settings import BaseSettings, WorldSettings


def make_demo(of_world: WorldSettings, of_base: BaseSettings, command: list[str]) -> int:
    """Write both folders, each with its summary last; returns the exit code. Raises UserError."""
    world.write_data(of_world, command)
    # Imported late: when the data cannot be made, nobody waits for torch.
    from cot_reward.demo.pretrain import write_base

    write_base(of_world, of_base, command)
    return 0
