"""What several machines refuse before a model loads; two nodes, each with a folder of its own."""

from pathlib import Path

import pytest
from helpers.environments import REPO
from helpers.nodes import NODES_SH, on_two_nodes

# Every case runs in both processes, one after the other: none is left waiting by a refusal.
CASES = """
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from accelerate import PartialState
from cot_reward.errors import UserError
from cot_reward.training import cluster, distributed

state = PartialState(cpu=True)
rank = state.process_index
(Path("own") / f"of_{rank}").mkdir(parents=True)

@dataclass
class Settings:
    beta: float = 0.1

class Training(SimpleNamespace):
    world_size = state.num_processes
    def to_dict(self):
        return {"local_rank": rank, "learning_rate": 1e-6, **vars(self)}

def case(name, work):
    try:
        told = work()
    except UserError as error:
        told = f"error: {error}"
    except SystemExit as error:
        told = f"exit {error.code}"
    print("CASE", name, "|", str(told).replace("\\n", " "), flush=True)

def only_on_1():
    if rank == 1:
        raise UserError("peft is not installed")
    return "fine"

def files(output, save, pictures):
    training = Training(output_dir=output, save_strategy=save)
    cluster.check_files(training, pictures, Path("media"))

shared, same = sys.argv[1], Settings()
case("results", lambda: list(distributed.on_every_machine(lambda: rank).values()))
case("fault", lambda: distributed.on_every_machine(only_on_1))
case("alike", lambda: distributed.same_on_every_machine("the model", lambda: "abc"))
case("model", lambda: distributed.same_on_every_machine("the model", lambda: f"digest {rank}"))
case("start", lambda: cluster.check_start(same, Training(), same))
case("flags", lambda: cluster.check_start(same, Training(save_steps=rank), same))
case("shared", lambda: files(shared, "steps", ["a.png"]))
case("apart", lambda: files("own", "steps", ["a.png"]))
case("no checkpoints", lambda: files("own", "no", ["a.png"]))
case("smaller", lambda: files(shared, "steps", ["b.png"]))
case("missing", lambda: files(shared, "steps", ["c.png"]))
state.wait_for_everyone()
state.destroy_process_group()
"""


@pytest.mark.slow
def test_machines_that_differ_are_refused_on_all_of_them(tmp_path: Path) -> None:
    hosts = [tmp_path / "0", tmp_path / "1"]
    for number, host in enumerate(hosts):
        (host / "media").mkdir(parents=True)
        (host / "media/a.png").write_bytes(b"a")
        (host / "media/b.png").write_bytes(b"b" * (1 + number))
    (hosts[0] / "media/c.png").write_bytes(b"c")
    (tmp_path / "cases.py").write_text(CASES)
    (tmp_path / "shared").mkdir()
    command = [NODES_SH, "torchrun", str(tmp_path / "cases.py"), str(tmp_path / "shared")]
    done = on_two_nodes(command, hosts, {"PYTHONPATH": str(REPO / "scripts")})
    assert [one.returncode for one in done] == [0, 0], done[0].stderr[-2000:] + done[1].stderr
    told = [
        dict(line.removeprefix("CASE ").split(" | ", 1) for line in one.stdout.splitlines()
             if line.startswith("CASE "))
        for one in done
    ]  # fmt: skip
    # The log of each machine has the message.
    assert told[0] == told[1]
    found = told[0]
    assert (found["results"], found["alike"], found["start"]) == ("[0, 1]", "abc", "None")
    assert (found["shared"], found["no checkpoints"]) == ("None", "None")
    assert found["fault"].startswith("error: on node 1 (")
    assert found["fault"].endswith("): peft is not installed")
    for name, words in {
        "model": "the model: digest 0 on node 0 (",
        "flags": "--save_steps: 0 on node 0 (",
        "apart": "--output_dir own: node 1 (",
        "smaller": "the images below media: ",
        "missing": "c.png: no such file below the media root media",
    }.items():
        assert found[name].startswith("error: "), name
        assert words in found[name], name
    assert "--learning_rate" not in found["flags"]
    assert "(--save_strategy no)" in found["apart"]
    assert "the model will be on the first machine alone" in done[0].stderr
    assert not list(tmp_path.glob("**/.mark-*"))
