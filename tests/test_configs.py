"""Every shipped configuration file is read by its own program, and the files are counted.

The tests add `use_cpu`, the variables of a one-process torchrun, and paths that a file leaves to
the command line.
"""

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from cot_reward import errors, settings
from cot_reward.tasks import TASKS
from cot_reward.tasks.prompts import check_template
from helpers.environments import REPO

SFT_PYTHON = REPO / ".envs/sft/bin/python"
FILES = sorted(
    str(path.relative_to(REPO))
    for path in [*(REPO / "configs").rglob("*"), REPO / "dataset/dataset_info.json"]
    if path.is_file()
)

# LLaMA-Factory's own readers, in its own environment. One process reads all files, since its start
# takes ten seconds. It reads jobs (name, reader, argument) and writes {name: error or ""}.
SERVER = """
import json, os, sys, traceback
from pathlib import Path
import yaml
from llamafactory.data.loader import _get_merged_dataset
from llamafactory.data.parser import get_dataset_list
from llamafactory.hparams import get_infer_args, get_train_args

def train(path, **extra):
    values = yaml.safe_load(Path(path).read_text()) | {"use_cpu": True} | extra
    model, data, training, finetuning, _ = get_train_args(values)
    get_dataset_list(data.dataset, data.dataset_dir)
    return model, data, training, finetuning

def train_with_deepspeed(path):
    *_, training, _ = train("configs/qwen_cold_start.yaml", deepspeed=path)
    stage = json.loads(Path(path).read_text())["zero_optimization"]["stage"]
    assert training.hf_deepspeed_config.config["zero_optimization"]["stage"] == stage
    assert training.hf_deepspeed_config.is_zero3() == (stage == 3)

def export(path):
    model, *_ = get_infer_args(yaml.safe_load(Path(path).read_text()))
    assert model.export_dir and model.adapter_name_or_path

def datasets(path):
    folder = str(Path(path).parent)
    names = list(json.loads(Path(path).read_text()))
    assert len(get_dataset_list(names, folder)) == len(names)
    # The sample rows stand for the rows of a run: `../` in the file name, and empty `videos`.
    for name in ("sample_sft", "rejection"):
        model, data, training, _ = train(
            "configs/one_gpu/rejection.yaml", dataset=name, preprocessing_num_workers=1
        )
        rows = list(_get_merged_dataset([name], model, data, training, stage="sft"))
        assert len(rows) == 2
        for row in rows:
            assert [turn["role"] for turn in row["_prompt"] + row["_response"]] == [
                "user", "assistant"]
            assert len(row["_images"]) == 2 and all(map(os.path.isfile, row["_images"]))
            assert row["_videos"] is None

results = {}
for name, reader, argument in json.load(sys.stdin):
    try:
        globals()[reader](argument)
        results[name] = ""
    except BaseException:
        results[name] = traceback.format_exc()
Path("results.json").write_text(json.dumps(results))
"""


@dataclass(frozen=True)
class LlamaFactory:
    """The function of SERVER that reads a file."""

    reader: str


def values(path: str) -> dict[str, Any]:
    return yaml.safe_load((REPO / path).read_text(encoding="utf-8"))


def flags_for(path: str, *names: str) -> list[str]:
    """Flags for the names that the file leaves to the command line."""
    given = values(path)
    return [part for name in names if name not in given for part in (f"--{name}", f"some/{name}")]


def read_accelerate(path: str) -> None:
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    load_config_from_file(str(REPO / path))
    # Merged with flags in the way of `accelerate launch`.
    for flags, processes in ([], values(path)["num_processes"]), (["--num_processes", "3"], 3):
        arguments = launch_command_parser().parse_args(["--config_file", path, *flags, "x.py"])
        arguments, config, _ = _validate_launch_command(arguments)
        assert arguments.num_processes == processes
        assert config.distributed_type == values(path)["distributed_type"]


def read_inference(path: str) -> None:
    from cot_reward.inference.settings import InferenceSettings

    settings.parse(InferenceSettings, "", argv=["--config", path, *flags_for(path, "data", "out")])


def read_distilling(path: str) -> None:
    from cot_reward.inference.cold_start import ColdStartSettings
    from cot_reward.inference.settings import InferenceSettings

    both = (InferenceSettings, ColdStartSettings)
    settings.parse_several(both, "", argv=["--config", path, *flags_for(path, "data")])


def read_evaluation(path: str) -> None:
    from cot_reward.evaluation.settings import BenchmarkSettings
    from cot_reward.inference.settings import InferenceSettings

    both = (InferenceSettings, BenchmarkSettings)
    settings.parse_several(both, "", argv=["--config", path])


def read_published(path: str) -> None:
    from cot_reward.evaluation.benchmarks import BENCHMARKS

    assert set(settings.read_yaml(Path(path))) <= set(BENCHMARKS)


def read_data_map(path: str) -> None:
    from cot_reward.preparing.settings import ConvertSettings

    settings.parse(ConvertSettings, "", argv=["a.json", "--config", path])


def read_merging(path: str) -> None:
    from cot_reward.pairing.settings import MergeSettings

    flags = flags_for(path, "correct", "incorrect", "out")
    settings.parse(MergeSettings, "", argv=["--config", path, *flags])


def read_dpo(path: str) -> None:
    from cot_reward.dpo import trl_settings

    flags = flags_for(path, "model_name_or_path", "data_path", "output_dir")
    ours, training, model = trl_settings.parse(["--config", path, "--use_cpu", "true", *flags])
    read = {**vars(ours), **vars(training), **vars(model)}
    assert read["learning_rate"] == values(path)["learning_rate"]
    assert read["max_length"] is None  # no chain of thought is cut


def read_grpo(path: str) -> None:
    from cot_reward.grpo import trl_settings

    flags = flags_for(path, "model_name_or_path", "output_dir")
    # vLLM is in an environment of its own.
    flags += ["--use_cpu", "true", "--bf16", "false", "--use_vllm", "false"]
    ours, training, model = trl_settings.parse(["--config", path, *flags])
    read = {**vars(ours), **vars(training), **vars(model)}
    for name in set(values(path)) - {"use_vllm", "use_cpu", "bf16", "report_to"}:
        assert read[name] == values(path)[name], name


def read_world(path: str) -> None:
    from cot_reward.demo.settings import BaseSettings, WorldSettings

    settings.parse_several((WorldSettings, BaseSettings), "", argv=["--config", path])


def read_profile(path: str) -> None:
    from cot_reward.chain.settings import Profile
    from cot_reward.chain.steps import Chain

    profile = settings.parse(Profile, "", argv=["--config", path])
    for gpus in (0, 1, 8):
        steps = list(Chain(profile, gpus).steps())
        assert len({step.name for step in steps}) == len(steps)
    # Paths of this repository, not of data.
    named = [value for value in vars(profile).values() if str(value).startswith("configs/")]
    assert len(named) >= 6
    assert all((REPO / value).is_file() for value in named), named


def read_template(path: str) -> None:
    check_template((REPO / path).read_text(encoding="utf-8"), TASKS["image_generation"])


# The program that reads each file. Every file must match exactly one line.
LOADERS: dict[str, LlamaFactory | Callable[[str], None]] = {
    "configs/qwen_cold_start.yaml": LlamaFactory("train"),
    "configs/rejection.yaml": LlamaFactory("train"),
    "configs/*_gpu/qwen_cold_start.yaml": LlamaFactory("train"),
    "configs/two_nodes/qwen_cold_start.yaml": LlamaFactory("train"),
    "configs/two_nodes/rejection.yaml": LlamaFactory("train"),
    "configs/*_gpu/rejection.yaml": LlamaFactory("train"),
    "configs/*_gpu/*_export.yaml": LlamaFactory("export"),
    "configs/demo/**/qwen_cold_start.yaml": LlamaFactory("train"),
    "configs/demo/**/rejection.yaml": LlamaFactory("train"),
    "configs/demo/**/control_rejection.yaml": LlamaFactory("train"),
    "configs/deepspeed/*.json": LlamaFactory("train_with_deepspeed"),
    "dataset/dataset_info.json": LlamaFactory("datasets"),
    "configs/accelerate/*.yaml": read_accelerate,
    "configs/demo/**/accelerate.yaml": read_accelerate,
    "configs/data/*.yaml": read_data_map,
    "configs/inference.yaml": read_inference,
    "configs/distill.yaml": read_distilling,
    "configs/evaluate.yaml": read_evaluation,
    "configs/published.yaml": read_published,
    "configs/demo/**/inference.yaml": read_inference,
    "configs/merge.yaml": read_merging,
    "configs/demo/**/merge.yaml": read_merging,
    "configs/dpo.yaml": read_dpo,
    "configs/dpo_lora.yaml": read_dpo,
    "configs/*_gpu/dpo.yaml": read_dpo,
    "configs/two_nodes/dpo.yaml": read_dpo,
    "configs/**/chain.yaml": read_profile,
    "configs/demo/**/dpo*.yaml": read_dpo,
    "configs/demo/**/control_sft.yaml": read_dpo,
    "configs/grpo.yaml": read_grpo,
    "configs/demo/grpo.yaml": read_grpo,
    "configs/demo/**/world.yaml": read_world,
    "configs/demo/**/template.txt": read_template,
}
# Changed by hand with each new file: a pattern that finds too few files is then noticed.
EXPECTED = 63
MATCHES = {
    file: [pattern for pattern in LOADERS if REPO / file in set(REPO.glob(pattern))]
    for file in FILES
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """For every file that LLaMA-Factory reads: "", or the traceback."""
    assert SFT_PYTHON.exists(), f"{SFT_PYTHON} is missing: make envs"
    # In a folder of its own: LLaMA-Factory refuses an output_dir that a run here has filled.
    house = tmp_path_factory.mktemp("house")
    (house / "configs").symlink_to(REPO / "configs")
    (house / "dataset").mkdir()
    (house / "dataset/sample").symlink_to(REPO / "dataset/sample")
    shutil.copy(REPO / "dataset/dataset_info.json", house / "dataset")
    (house / "runs/stage1_infer").mkdir(parents=True)
    shutil.copy(REPO / "dataset/sample/correct.jsonl", house / "runs/stage1_infer")

    loaders = {file: LOADERS[patterns[0]] for file, patterns in MATCHES.items() if patterns}
    jobs = [
        (file, loader.reader, file)
        for file, loader in loaders.items()
        if isinstance(loader, LlamaFactory)
    ]
    wrong = house / "wrong.yaml"
    wrong.write_text((REPO / "configs/rejection.yaml").read_text() + "\nnot_a_key: 1\n")
    jobs.append(("wrong", "train", str(wrong)))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torchrun = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    torchrun |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    offline = {"HF_HOME": str(house / "hf"), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [SFT_PYTHON, "-c", SERVER],
        input=json.dumps(jobs),
        capture_output=True,
        text=True,
        cwd=house,
        env=os.environ | torchrun | offline,
        check=False,
    )
    assert (house / "results.json").exists(), done.stderr[-4000:]
    return json.loads((house / "results.json").read_text())


def as_parameter(file: str) -> Any:
    """The file; it is slow where LLaMA-Factory has to start for it."""
    starts = any(isinstance(LOADERS[pattern], LlamaFactory) for pattern in MATCHES[file])
    return pytest.param(file, marks=[pytest.mark.slow] if starts else [])


@pytest.mark.parametrize("file", map(as_parameter, FILES))
def test_config_is_read_by_its_program(
    file: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(MATCHES[file]) == 1, f"add {file} to LOADERS (matches {MATCHES[file]})"
    loader = LOADERS[MATCHES[file][0]]
    if isinstance(loader, LlamaFactory):
        assert request.getfixturevalue("results")[file] == ""
    else:
        monkeypatch.chdir(REPO)
        loader(file)


def test_no_loader_is_left_over_and_the_number_is_known() -> None:
    used = {pattern for patterns in MATCHES.values() for pattern in patterns}
    assert used == set(LOADERS)
    assert len(FILES) == EXPECTED


# --- what the files say ---------------------------------------------------------------------------
REAL = [
    folder + name for folder in ("", "one_gpu/", "small_gpu/")
    for name in ("qwen_cold_start", "rejection")
]  # fmt: skip


@pytest.mark.parametrize("name", REAL)
def test_real_training_settings(name: str) -> None:
    config = values(f"configs/{name}.yaml")
    expected = {
        "template": "qwen2_vl",
        "image_max_pixels": 262144,
        "video_max_pixels": 16384,
        "freeze_vision_tower": True,
        "freeze_multi_modal_projector": True,
        "cutoff_len": 8192 if name.startswith("small_gpu") else 13000,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 32,
        "num_train_epochs": 3.0,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.03,
        "bf16": True,
        "enable_liger_kernel": True,
        "plot_loss": True,
        "report_to": "tensorboard",
        "media_dir": "dataset",
        "trust_remote_code": False,
        "learning_rate": 1e-4 if "gpu/" in name else 2.5e-6,
        "finetuning_type": "lora" if "gpu/" in name else "full",
    }
    assert {key: config.get(key) for key in expected} == expected
    # With this key, `llamafactory-cli train` on one GPU needs torchrun.
    assert ("deepspeed" in config) != ("gpu/" in name)


def test_stages_are_chained() -> None:
    stage_1, stage_2 = values("configs/qwen_cold_start.yaml"), values("configs/rejection.yaml")
    assert stage_2["model_name_or_path"] == stage_1["output_dir"]
    assert values("configs/dpo.yaml")["model_name_or_path"] == stage_2["output_dir"]
    for folder in ("configs/one_gpu", "configs/small_gpu"):
        base = values(f"{folder}/chain.yaml")["base"]
        for name in ("qwen_cold_start", "rejection"):
            train, export = values(f"{folder}/{name}.yaml"), values(f"{folder}/{name}_export.yaml")
            assert train["model_name_or_path"] == export["model_name_or_path"] == base
            assert export["adapter_name_or_path"] == train["output_dir"]
            base = export["export_dir"]
        if folder.endswith("small_gpu"):
            assert values(f"{folder}/dpo.yaml")["model_name_or_path"] == base
    # The chain of one_gpu gives it the merged model of its own stage 2.
    assert values("configs/dpo_lora.yaml")["model_name_or_path"] == stage_2["output_dir"]


@pytest.mark.parametrize("name", ["qwen_cold_start", "rejection", "dpo"])
def test_two_nodes_train_as_one(name: str) -> None:
    """Twice the processes and half the accumulation: as many rows a step, nothing else changed."""
    one, two = values(f"configs/{name}.yaml"), values(f"configs/two_nodes/{name}.yaml")
    assert one.pop("gradient_accumulation_steps") == 2 * two.pop("gradient_accumulation_steps")
    assert one == two


@pytest.mark.parametrize("name", ["zero2", "zero3", "fsdp2"])
def test_launch_files_of_two_nodes(name: str) -> None:
    one = values(f"configs/accelerate/{name}.yaml")
    two = values(f"configs/accelerate/{name}_two_nodes.yaml")
    own = {"num_machines": 2, "num_processes": 2 * one["num_processes"]}
    own |= {"main_process_port": 29500}
    assert two == one | own


def test_flags_of_a_node_reach_torchrun() -> None:
    """With the flags that scripts/nodes.sh gives, whatever engine the file names."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    flags = "--num_machines 2 --num_processes 6 --machine_rank 1 --main_process_ip node-0"
    flags += " --main_process_port 29611"
    for name in ("zero2_two_nodes", "zero3_two_nodes", "fsdp2_two_nodes", "zero2", "ddp"):
        file = str(REPO / f"configs/accelerate/{name}.yaml")
        given = ["--config_file", file, *flags.split(), "x.py"]
        arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(given))
        prepare_multi_gpu_env(arguments)
        assert (arguments.nnodes, arguments.nproc_per_node, arguments.node_rank) == ("2", "3", 1)
        assert arguments.rdzv_endpoint == "node-0:29611"


def test_the_control_of_rejection_sampling_goes_on_as_stage_2_began() -> None:
    stage_2 = values("configs/demo/rejection.yaml")
    control = values("configs/demo/control_rejection.yaml")
    assert control["model_name_or_path"] == stage_2["output_dir"]
    own = {"model_name_or_path", "dataset", "output_dir", "learning_rate", "num_train_epochs"}
    assert {key: control[key] for key in stage_2.keys() - own} == {
        key: stage_2[key] for key in stage_2.keys() - own
    }


def test_data_paths_meet() -> None:
    registered = json.loads((REPO / "dataset/dataset_info.json").read_text())
    file = (REPO / "dataset" / registered["rejection"]["file_name"]).resolve()
    assert file == REPO / values("configs/inference.yaml")["out"] / "correct.jsonl"
    file = (REPO / "dataset" / registered["demo_rejection"]["file_name"]).resolve()
    assert file == REPO / values("configs/demo/inference.yaml")["out"] / "correct.jsonl"
    file = (REPO / "dataset" / registered["demo_control_rejection"]["file_name"]).resolve()
    assert (
        f"{file.parent.relative_to(REPO)}*/correct.jsonl"
        in (values("configs/demo/merge.yaml")["correct"])
    )
    # A folder is named by who answered: stage 1's model (inference.yaml), then stage 2's.
    merge = values("configs/merge.yaml")
    first, second = values("configs/inference.yaml")["out"], "runs/stage2_infer"
    assert first == "runs/stage1_infer"
    assert merge["correct"] == [f"{second}/correct.jsonl"]
    assert merge["incorrect"] == [f"{folder}/incorrect.jsonl" for folder in (first, second)]
    assert values("configs/dpo.yaml")["data_path"] == f"{merge['out']}/train.jsonl"
    for name in ("README.md", "README.zh-CN.md"):
        assert f"--out {second}" in (REPO / name).read_text(encoding="utf-8")
    bounds = [values(file).get("image_max_pixels") for file in FILES if file.endswith(".yaml")]
    assert set(bounds) <= {262144, None}


def test_no_absolute_paths() -> None:
    def strings(value: Any) -> list[str]:
        if isinstance(value, dict):
            return [text for item in value.values() for text in strings(item)]
        if isinstance(value, list):
            return [text for item in value for text in strings(item)]
        return [value] if isinstance(value, str) else []

    for file in FILES:
        if not file.endswith(".txt"):
            for text in strings(values(file)):  # JSON is YAML
                assert not text.startswith(("/", "~")), f"{file}: {text}"


@pytest.mark.slow
def test_readers_refuse_a_wrong_key(tmp_path: Path, results: dict[str, str]) -> None:
    """The loaders of this file notice a mistake."""
    assert "not_a_key" in results["wrong"]
    for file, load in [
        ("configs/inference.yaml", read_inference),
        ("configs/merge.yaml", read_merging),
        ("configs/dpo.yaml", read_dpo),
        ("configs/grpo.yaml", read_grpo),
        ("configs/accelerate/zero2.yaml", read_accelerate),
        ("configs/demo/world.yaml", read_world),
    ]:
        path = tmp_path / Path(file).name
        path.write_text((REPO / file).read_text() + "\nnot_a_key: 1\n")
        with pytest.raises((errors.UserError, ValueError), match="not_a_key"):
            load(str(path))
