"""Have the nodes of a training meet before it starts; scripts/nodes.sh calls it on each:

    python scripts/check_nodes.py --nodes 2 --rank 0 --address 10.0.0.1 --port 29500 \\
        --processes 8 --environment .envs/sft configs/two_nodes/qwen_cold_start.yaml [KEY=VALUE ...]

Says which node is missing. Refuses nodes that differ in code, packages, or number of processes; of
a training of stage 1 or 2 (its YAML is named) in settings, rows, media or model as well, and then
does what scripts/check_sft.py does. Exit status on every node: 0 start, 2 do not.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cot_reward.errors import run_script
from cot_reward.settings import parse, setting


def _needed(text: str) -> Any:
    return field(metadata={"help": text})


@dataclass(frozen=True)
class NodeCheckSettings:
    nodes: int = _needed("nodes in all")
    rank: int = _needed("which one this is, from 0")
    address: str = _needed("name or address of node 0, as the other nodes reach it")
    port: int = _needed("port of node 0, the one that the training will use")
    environment: Path = _needed("folder of the environment that trains")
    processes: int = setting("processes (GPUs) of each node", 1)
    wait: float = setting("seconds to wait for a node", 600.0)
    training: list[str] = field(
        default_factory=list,
        metadata={"help": "YAML of LLaMA-Factory, then KEY=VALUE ...", "positional": True},
    )


def main() -> int:
    settings = parse(NodeCheckSettings, __doc__ or "")
    from cot_reward.sft.start import check_start, facts_of, remove_mark
    from cot_reward.training.machines import software
    from cot_reward.training.meeting import meet
    from cot_reward.training.meeting_place import Place

    place = Place(settings.nodes, settings.rank, settings.address, settings.port)
    training = settings.training

    def look() -> dict[str, str]:
        found = software(settings.environment)
        found["processes of a node"] = str(settings.processes)
        return found | (facts_of(training, place.rank) if training else {})

    def decide() -> str:
        return check_start(training, place.nodes * settings.processes) if training else "alike"

    try:
        print(f"{place.nodes} nodes: {meet(place, look, decide, settings.wait)}")
    finally:
        if training and not place.rank:
            remove_mark(training)
    return 0


if __name__ == "__main__":
    run_script(main)
