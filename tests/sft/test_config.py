"""A training of LLaMA-Factory as it is read: arguments, data files, steps."""

import json
from pathlib import Path

import pytest
import yaml
from cot_reward.errors import UserError
from cot_reward.sft.config import can_resume, count_steps, data_files, describe, read_config

CONFIG = {"output_dir": "out", "dataset": "one", "model_name_or_path": "base", "seed": 0}


def test_arguments_win_over_the_yaml(tmp_path: Path) -> None:
    path = tmp_path / "sft.yaml"
    path.write_text(yaml.safe_dump(CONFIG))
    config = read_config(path, ["seed=7", "learning_rate=1.0e-5", "bf16=true", "template=a=b"])
    assert config == CONFIG | {"seed": 7, "learning_rate": 1e-5, "bf16": True, "template": "a=b"}
    with pytest.raises(UserError, match="--seed: not KEY=VALUE"):
        read_config(path, ["--seed"])
    for told in (["save_strategy=no"], ["eval_strategy=false"]):
        with pytest.raises(UserError, match=r"_strategy: \"no\" in YAML, or \w+='\"no\"' as an"):
            read_config(path, told)
    path.write_text(yaml.safe_dump({"dataset": "one", "model_name_or_path": "base"}))
    with pytest.raises(UserError, match="output_dir is missing"):
        read_config(path)


@pytest.mark.parametrize("names", ["one,two", "one, two", ["one", "two"]])
def test_data_files_stand_in_dataset_info(tmp_path: Path, names: object) -> None:
    known = {"one": {"file_name": "a.json"}, "two": {"file_name": "sub/b.jsonl"}}
    (tmp_path / "dataset_info.json").write_text(json.dumps(known))
    config = {"dataset_dir": str(tmp_path), "dataset": names}
    assert data_files(config) == [tmp_path / "a.json", tmp_path / "sub/b.jsonl"]
    with pytest.raises(UserError, match=r"no data set 'tow'\. Did you mean 'two'"):
        data_files(config | {"dataset": "tow"})
    (tmp_path / "dataset_info.json").write_text("{")
    with pytest.raises(UserError, match=r"dataset_info.json: cannot be read"):
        data_files(config)


def test_few_steps_are_told_of(tmp_path: Path) -> None:
    rows, path = tmp_path / "rows.jsonl", tmp_path / "sft.yaml"
    rows.write_text("{}\n" * 60)
    config = {
        "per_device_train_batch_size": 1, "gradient_accumulation_steps": 32,
        "num_train_epochs": 3.0,
    }  # fmt: skip
    told = describe(config, path, [rows], 1)
    assert told.startswith("60 rows, 32 a step, 3 epochs: 6 steps; that is few (under 30)")
    rows.write_text("{}\n" * 3000)
    assert describe(config, path, [rows, rows], 8) == "6000 rows, 256 a step, 3 epochs: 72 steps"
    assert count_steps(100, 32, 2.5) == 10


@pytest.mark.parametrize(
    ("config", "can"),
    [
        ({"finetuning_type": "full"}, False),
        ({"finetuning_type": "freeze"}, False),
        ({"finetuning_type": "full", "deepspeed": "zero2.json"}, True),
        ({"finetuning_type": "lora"}, True),
        ({}, True),
    ],
)
def test_what_llama_factory_can_continue(config: dict, can: bool) -> None:
    assert can_resume(config) == can
