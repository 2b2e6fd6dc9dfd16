"""A training whose template is another family's than its model's is refused."""

import json
from pathlib import Path

import pytest
from cot_reward.errors import UserError
from cot_reward.sft.chat_template import check_template


def model(folder: Path, kind: str) -> Path:
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    return folder


@pytest.mark.parametrize(
    ("kind", "template"),
    [
        ("qwen2_5_vl", "qwen2_vl"),
        ("qwen3_vl", "qwen3_vl_nothink"),
        ("qwen3_5", "qwen3_5_nothink"),
        ("of_next_year", "anything"),
    ],
)
def test_a_familys_own_template_passes(tmp_path: Path, kind: str, template: str) -> None:
    check_template(model(tmp_path, kind), template)


@pytest.mark.parametrize(
    ("kind", "template", "right"),
    [
        ("qwen3_vl", "qwen2_vl", "qwen3_vl_nothink"),
        ("qwen2_5_vl", "qwen3_vl_nothink", "qwen2_vl"),
        ("qwen3_5", None, "qwen3_5_nothink"),
    ],
)
def test_another_familys_is_refused_with_the_right_one(
    tmp_path: Path, kind: str, template: str | None, right: str
) -> None:
    with pytest.raises(UserError, match=f"which is a {kind}: give template={right} "):
        check_template(model(tmp_path, kind), template)


@pytest.mark.parametrize("content", ["", "[]", "{", '"text"'])
def test_a_model_without_a_readable_configuration_passes(tmp_path: Path, content: str) -> None:
    """Other checks tell of it; a name on the hub has no folder."""
    (tmp_path / "config.json").write_text(content)
    check_template(tmp_path, "qwen2_vl")
    check_template(tmp_path / "Qwen/Qwen3-VL-8B-Instruct", "qwen2_vl")
