"""What is told of a model's folder without loading it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cot_reward.model_folder import fault_of_model
from helpers.environments import REPO
from safetensors.torch import load_file, save_file


@pytest.fixture
def model(base: Path, tmp_path: Path) -> Path:
    """A model whose head is tied to its embeddings, and not saved."""
    copy = Path(shutil.copytree(base, tmp_path / "model"))
    assert "lm_head.weight" not in load_file(copy / "model.safetensors")
    return copy


def tie(model: Path, top: Any, text: Any) -> None:
    """Set the flag at the top level and in text_config; None leaves it out."""
    config = json.loads((model / "config.json").read_text())
    for part, value in ((config, top), (config["text_config"], text)):
        part.pop("tie_word_embeddings", None)
        if value is not None:
            part["tie_word_embeddings"] = value
    (model / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("top", "text", "expected"),
    [
        (True, True, ""),
        (True, None, ""),
        (True, False, ""),
        (None, True, "only inside text_config"),
        (False, True, "only inside text_config"),
        (False, False, "its weights are not complete"),
        (False, None, "its weights are not complete"),
        (None, None, ""),
    ],
)
@pytest.mark.parametrize("sharded", [False, True])
def test_a_head_is_saved_or_tied(
    model: Path, top: Any, text: Any, expected: str, sharded: bool
) -> None:
    tie(model, top, text)
    weights = load_file(model / "model.safetensors")

    def save(names: list[str]) -> None:
        if not sharded:
            save_file({name: weights[name] for name in names}, model / "model.safetensors")
            return
        (model / "model.safetensors").rename(model / "model-00001-of-00001.safetensors")
        index = {"weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}
        (model / "model.safetensors.index.json").write_text(json.dumps(index))

    save(list(weights))
    fault = fault_of_model(model)
    assert expected in fault
    assert bool(expected) == bool(fault)
    # With weights of its own the head needs no tie.
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    if sharded:
        (model / "model-00001-of-00001.safetensors").rename(model / "model.safetensors")
    save(list(weights))
    assert fault_of_model(model) == ""


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda model: (model / "config.json").unlink(), "has no config.json"),
        (lambda model: (model / "config.json").write_text("{"), "has no config.json"),
        (lambda model: (model / "model.safetensors").unlink(), "has no weights"),
        (
            lambda model: (model / "model.safetensors").rename(model / "training_args.bin"),
            "has no weights",
        ),
        (lambda model: (model / "adapter_config.json").write_text("{}"), "holds a LoRA adapter"),
        (
            lambda model: (
                (model / "model.safetensors").rename(model / "m1.safetensors")
                and (model / "model.safetensors.index.json").write_text(
                    '{"weight_map": {"lm_head.weight": "m1.safetensors", "b": "m2.safetensors"}}'
                )
            ),
            "lacks m2.safetensors",
        ),
    ],
)
def test_what_is_no_whole_model_is_told(model: Path, change: Any, expected: str) -> None:
    assert fault_of_model(model) == ""
    change(model)
    assert expected in fault_of_model(model)


def test_it_needs_no_model_library() -> None:
    code = "import sys, cot_reward.model_folder; print({'torch', 'transformers'} & {*sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPO / "scripts", capture_output=True, text=True
    )
    assert done.stdout == "set()\n"
