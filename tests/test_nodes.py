"""Trainings on two nodes by scripts/nodes.sh, by hand and as Slurm calls it. Both are this machine.

Slurm is not here: its commands are small scripts that set the variables and give the answers which
srun and scontrol give.
"""

import json
import os
import random
import shutil
import socket
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from cot_reward.dpo import run
from helpers.dpo import FORM, save_model, trainer_for, varied, write
from helpers.environments import REPO
from helpers.models import save_untrained_base
from helpers.nodes import ADDRESS, ENVIRONMENT, NODES_SH, on_two_nodes
from helpers.pictures import picture
from safetensors.torch import load_file

SRUN = """#!/usr/bin/env bash
# One task on each of two nodes; the first that fails gives the exit code.
while [[ $1 == --* ]]; do echo "$1" >>"$STUBS/srun_flags"; shift; done
export SLURM_STEP_NUM_NODES=2 SLURM_STEP_NUM_TASKS=${TASKS:-2} SLURM_STEP_NODELIST='node-[1-2]'
for rank in 0 1; do SLURM_PROCID=$rank SLURM_NODEID=$rank "$@" & done
code=0
for _ in 0 1; do wait -n || code=$?; done
exit "$code"
"""
SCONTROL = f"""#!/usr/bin/env bash
[[ "$*" == "show hostnames node-[1-2]" ]] && printf '{ADDRESS}\\n127.0.0.3\\n'
"""


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Eleven rows: the last batch of an epoch is never full."""
    rows = varied(11, images=(2, 1, 3), form=FORM)
    return write(tmp_path_factory.mktemp("rows") / "pairs.jsonl", rows)


def dpo(base: Path | str, folder: Path | str, pairs: str, out: Path | str) -> list[str]:
    """Two processes of two pairs a step."""
    return (
        f"{REPO}/scripts/DPO_VL.py --config {REPO}/configs/demo/dpo.yaml "
        f"--model_name_or_path {base} --data_path {pairs} "
        f"--image_folder {folder} --output_dir {out} --report_to none "
        "--per_device_train_batch_size 2 --num_train_epochs 2 --warmup_steps 0 "
        "--preference_tokens all --save_strategy steps --save_steps 4"
    ).split()


def history(out: Path) -> list[dict[str, float]]:
    entries = json.loads((out / "trainer_state.json").read_text())["log_history"]
    return [entry for entry in entries if "loss" in entry]


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model.safetensors")


def assert_same_training(out: Path, one: Path) -> None:
    for key in ("loss", "rewards/margins", "grad_norm"):
        found, expected = ([entry[key] for entry in history(path)] for path in (out, one))
        assert len(found) == 6
        # At the first step policy and reference are one, and rounding makes the margin.
        assert found[1:] == pytest.approx(expected[1:], rel=1e-3, abs=1e-5), key
    expected_weights = weights(one)
    for name, weight in weights(out).items():
        # DeepSpeed writes the head, too, that is tied to the embedding.
        tied = "model.embed_tokens.weight" if name == "lm_head.weight" else name
        torch.testing.assert_close(weight, expected_weights[tied], rtol=0, atol=1e-5)
    assert json.loads((out / "summary.json").read_text())["steps"] == 6


@pytest.fixture(scope="module")
def one(base: Path, folder: Path, pairs: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The training of the tests below in one process."""
    out = tmp_path_factory.mktemp("one") / "out"
    flags = "--per_device_train_batch_size 4 --max_steps -1 --num_train_epochs 2 --warmup_steps 0"
    trainer, parsed = trainer_for(base, folder, pairs, out, *flags.split())
    run.train(trainer, *parsed)
    return out


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """The variables of a job, with a path to its commands."""
    stubs = tmp_path / "stubs"
    stubs.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (stubs / name).write_text(text)
        (stubs / name).chmod(0o755)
    # The port of a job follows from its number, and another program may have it.
    for number in random.sample(range(10_000), 10_000):
        with suppress(OSError), socket.socket() as probe:
            probe.bind(("", 20_000 + number))
            break
    return ENVIRONMENT | {
        "PATH": f"{stubs}:{os.environ['PATH']}", "STUBS": str(stubs),
        "SLURM_JOB_ID": str(70_000 + number), "SLURM_JOB_NODELIST": "node-[1-2]",
        "SLURM_NNODES": "2", "SLURM_CPUS_PER_TASK": "4",
    }  # fmt: skip


def sbatch(job: dict[str, str], *command: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["bash", "scripts/slurm.sbatch", *command], cwd=REPO, env=job, capture_output=True,
        text=True, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_two_nodes_train_as_one_under_slurm(
    base: Path, folder: Path, pairs: str, one: Path, tmp_path: Path, slurm: dict[str, str]
) -> None:
    out = tmp_path / "out"
    done = sbatch(slurm, "torchrun", *dpo(base, folder, pairs, out))
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same_training(out, one)
    flags = (tmp_path / "stubs/srun_flags").read_text().split()
    assert {"--kill-on-bad-exit=1", "--cpus-per-task=4"} <= set(flags)
    # Each process has its part, and the folder has all of them.
    states = (out / "checkpoint-4").glob("rng_state_*.pth")
    assert sorted(path.name for path in states) == ["rng_state_0.pth", "rng_state_1.pth"]


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="DeepSpeed compiles its exchange of data")
def test_the_launch_file_of_two_nodes_trains_as_one_process(
    base: Path, folder: Path, pairs: str, one: Path, tmp_path: Path
) -> None:
    """The shipped ZeRO-2 file, in fp32 for the CPU, with one process a node."""
    file = "configs/accelerate/zero2_two_nodes.yaml"
    command = [NODES_SH, "accelerate", "launch", "--config_file", file, "--mixed_precision", "no"]
    done = on_two_nodes([*command, *dpo(base, folder, pairs, tmp_path / "out")])
    assert [node.returncode for node in done] == [0, 0], done[0].stderr[-3000:]
    assert "2 nodes: alike" in done[1].stdout
    assert_same_training(tmp_path / "out", one)


@pytest.mark.slow
def test_nodes_with_other_weights_are_refused(folder: Path, tmp_path: Path) -> None:
    """DDP gives all nodes the weights of node 0, but reference log-probs are computed before."""
    hosts = [tmp_path / "0", tmp_path / "1"]
    for host in hosts:
        host.mkdir()
        save_model(host / "base")
        (host / "media").symlink_to(folder)
        write(host / "pairs.jsonl", varied(4, form=FORM))
    changed = hosts[1] / "base/model.safetensors"
    changed.write_bytes(changed.read_bytes()[:-4] + bytes(4))
    command = [NODES_SH, "torchrun", *dpo("base", "media", "pairs.jsonl", tmp_path / "out")]
    done = on_two_nodes(command, hosts)
    host = socket.gethostname()
    for node in done:
        assert node.returncode == 1
        assert "error: the machines of this training differ:" in node.stderr
        assert "--model_name_or_path base: " in node.stderr
        assert f"on node 1 ({host})" in node.stderr
    assert not (tmp_path / "out/summary.json").exists()


def sft_world(folder: Path) -> list[str]:
    """The arguments of a training of eight rows, in a folder that is a node's file system."""
    save_untrained_base(folder / "model")
    picture(folder / "a.png", size=56)
    rows = [
        {
            "conversations": [
                {"from": "human", "value": "<image>Which?"},
                {"from": "gpt", "value": f"Image {1 + number % 2}"},
            ],
            "images": ["a.png"],
        }
        for number in range(8)
    ]
    (folder / "rows.json").write_text(json.dumps(rows))
    columns = {"messages": "conversations", "images": "images"}
    info = {"rows": {"file_name": "rows.json", "formatting": "sharegpt", "columns": columns}}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    config: dict[str, Any] = yaml.safe_load(
        (REPO / "configs/demo/qwen_cold_start.yaml").read_text()
    ) | {
        "model_name_or_path": "model", "dataset": "rows", "dataset_dir": ".", "media_dir": ".",
        "output_dir": "out", "num_train_epochs": 3, "per_device_train_batch_size": 2,
        "logging_steps": 1, "report_to": "none",
    }  # fmt: skip
    (folder / "sft.yaml").write_text(yaml.safe_dump(config))
    return ["llamafactory-cli", "train", "sft.yaml"]


@pytest.mark.slow
def test_llama_factory_trains_on_two_nodes(tmp_path: Path) -> None:
    hosts = [tmp_path / "0", tmp_path / "1"]
    hosts[0].mkdir()
    command = [NODES_SH, *sft_world(hosts[0])]
    shutil.copytree(*hosts)
    cache = {"HF_HOME": str(tmp_path / "hf")}

    refused = on_two_nodes([*command, "save_strategy=epoch"], hosts, cache)
    assert [node.returncode for node in refused] == [2, 2], refused[0].stderr
    for node in refused:
        assert "output_dir, which all nodes must share" in node.stderr
    assert not list(tmp_path.glob("*/out/*"))

    done = on_two_nodes(command, hosts, cache)
    assert [node.returncode for node in done] == [0, 0], done[0].stderr[-3000:]
    for node in done:
        assert "2 nodes: out: a new training; 8 rows, 4 a step, 3 epochs: 6 steps" in node.stdout
    out = hosts[0] / "out"
    assert json.loads((out / "trainer_state.json").read_text())["global_step"] == 6
    losses = [entry["loss"] for entry in history(out)]
    assert losses[-1] < losses[0]
    before, after = load_file(hosts[0] / "model/model.safetensors"), weights(out)
    assert any((after[name] != before[name]).any() for name in before)
    # The first node has the model, and each one a cache of its own.
    assert not (hosts[1] / "out/model.safetensors").exists()
    assert sorted(path.name for path in (tmp_path / "hf/datasets").iterdir()) == ["node0", "node1"]


# --- what the script refuses by itself ------------------------------------------------------------
def started(*command: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    return subprocess.run(
        [NODES_SH, *command], env=kept | variables, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("command", "variables", "words"),
    [
        ("torchrun a.py", {}, "NNODES is not set"),
        ("torchrun a.py", {"NNODES": "2", "NODE_RANK": "0"}, "MASTER_ADDR is not set"),
        ("torchrun a.py", {"NNODES": "two"}, "NNODES=two is no number"),
        ("torchrun a.py", {"NODE_RANK": "2"}, "NNODES=2 NODE_RANK=2: of N nodes each has another"),
        ("torchrun a.py", {"NPROC_PER_NODE": "0"}, "no GPU is found on"),
        ("python a.py", {}, "'python': llamafactory-cli train, accelerate launch or torchrun"),
        ("llamafactory-cli train", {}, "llamafactory-cli train YAML [KEY=VALUE ...] is wanted"),
        ("accelerate test", {}, "accelerate launch ... is wanted"),
        ("llamafactory-cli train no.yaml", {"NNODES": "1"}, "no.yaml"),
        (
            "torchrun a.py", {"NODE_RANK": "1", "NODES_WAIT": "0.1", "MASTER_PORT": "1"},
            f"did not reach node 0 at {ADDRESS}:1 in 0 seconds: Connection refused",
        ),
        *(
            ("torchrun a.py", {"NPROC_PER_NODE": "", "CUDA_VISIBLE_DEVICES": hidden},
             f"(CUDA_VISIBLE_DEVICES={hidden}); NPROC_PER_NODE is")
            for hidden in ("", ",", "-1", "-1,0", " ,1")
        ),
        (
            "torchrun a.py", {"SLURM_PROCID": "0", "SLURM_NODEID": "0", "NNODES": "",
            "SLURM_NNODES": "2"},
            "srun started 1 tasks on 2 nodes; one a node is needed (--ntasks-per-node=1)",
        ),
        (
            "torchrun a.py", {"SLURM_PROCID": "0", "SLURM_NODEID": "0", "NNODES": "",
            "SLURM_STEP_NUM_NODES": "1", "MASTER_ADDR": ""},
            "scontrol does not tell the nodes of this job; set MASTER_ADDR",
        ),
        (
            "torchrun a.py", {"SLURM_PROCID": "0", "SLURM_NODEID": "0", "NNODES": "",
            "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NUM_TASKS": "16"},
            "srun started 16 tasks on 2 nodes; one a node is needed (--ntasks-per-node=1)",
        ),
    ],
)  # fmt: skip
def test_what_cannot_start_is_said(command: str, variables: dict[str, str], words: str) -> None:
    given = {"NNODES": "2", "NODE_RANK": "0", "MASTER_ADDR": ADDRESS, "NPROC_PER_NODE": "1"}
    if words.endswith("is not set"):
        given = {}
    done = started(*command.split(), **given | variables)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
