"""A training on several machines: refused where they do not have the same, before a model loads."""

import dataclasses
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from trl import ModelConfig

from cot_reward.errors import UserError
from cot_reward.training.distributed import (
    broadcast_from_main,
    on_every_machine,
    print_once,
    raise_together,
    same_on_every_machine,
)
from cot_reward.training.machines import media, software

# What may differ between processes.
_OWN = {"local_rank", "logging_dir", "run_name"}


def check_start(settings: Any, training: Any, model_config: ModelConfig) -> None:
    """Raise UserError where machines have other code, packages or settings than the main one."""

    def found() -> dict[str, Any]:
        given = {
            **dataclasses.asdict(settings),
            **dataclasses.asdict(model_config),
            **training.to_dict(),
        }
        flags = {f"--{name}": value for name, value in given.items() if name not in _OWN}
        return software() | flags

    if training.world_size > 1:
        same_on_every_machine("the start", found)


def check_files(training: Any, images: Iterable[str], folder: Path) -> None:
    """Raise UserError where a machine has other images, and for checkpoints in several places.

    `folder` is the one of the images. Every process must call it.
    """
    if len(on_every_machine(lambda: None)) == 1:
        return
    same_on_every_machine(f"the images below {folder}", lambda: media(images, folder))
    output = Path(str(training.output_dir))
    mark = output / f".mark-{broadcast_from_main(lambda: uuid.uuid4().hex)}"
    broadcast_from_main(mark.touch)
    has_mark = on_every_machine(mark.exists)
    broadcast_from_main(mark.unlink)
    if all(has_mark.values()):
        return
    without = ", ".join(name for name, has in has_mark.items() if not has)
    told = f"--output_dir {output}: {without} cannot see what the first machine writes there"
    if training.save_strategy == "no":
        print_once(f"{told}; the model will be on the first machine alone")
        return
    # Each process leaves its part of the state on its own machine, and resumes from there.
    fault = UserError(
        f"{told}, so that no run could go on from a checkpoint; name a folder that all machines "
        "share, or train without checkpoints (--save_strategy no)"
    )
    raise_together(fault)
