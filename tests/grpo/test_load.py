"""Folders and prompts are checked before rows are trained on."""

import shutil
from pathlib import Path

import pytest
from cot_reward.errors import UserError
from cot_reward.grpo import trl_settings
from cot_reward.grpo.load import load_train_and_eval
from helpers.grpo import TEMPLATE, flags_for


def load(model: Path, world: Path, out: Path, *flags: str, template: bool = True):
    given = flags_for(model, world, out, *flags)
    if not template:
        at = given.index("--template")
        del given[at : at + 2]
    return load_train_and_eval(*trl_settings.parse(given))


def test_the_models_own_prompt_is_used_and_no_other(
    speaker: Path, comparisons: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(speaker, tmp_path / "model"))
    (model / "template.txt").write_text("Another one: [{caption}]\n")
    found, _ = load(model, comparisons, tmp_path / "out", template=False)
    assert found.rows[0].prompt == "<image><image>Another one: [a red circle 0]"
    assert found.templates["image_generation"] == "Another one: [{caption}]"
    with pytest.raises(UserError, match="was trained on another prompt for image_generation"):
        load(model, comparisons, tmp_path / "out")
    (model / "template.txt").write_text(TEMPLATE)
    found, held_out = load(model, comparisons, tmp_path / "out")
    assert found.templates["image_generation"] == TEMPLATE
    assert held_out is None


def test_without_any_template_the_tasks_own_is_asked(
    speaker: Path, comparisons: Path, tmp_path: Path
) -> None:
    found, _ = load(speaker, comparisons, tmp_path / "out", template=False)
    assert "Text Caption: [a red circle 0]" in found.rows[0].prompt
    assert found.templates["image_generation"] != TEMPLATE


def test_folders_are_checked_before_rows(speaker: Path, comparisons: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    (tmp_path / "file").write_text("")
    missing = ("--data_path", "gone.jsonl")
    for model, out, message in [
        (adapter, tmp_path / "out", "holds a LoRA adapter"),
        (tmp_path, tmp_path / "out", "has no config.json"),
        (speaker, speaker, "is the folder of the model that is trained"),
        (speaker, tmp_path / "file/out", "cannot be written"),
        (speaker, tmp_path / "out", "gone.jsonl: no such file"),
    ]:
        with pytest.raises(UserError, match=message):
            load(model, comparisons, out, *missing)


def test_bad_rows_are_told_when_they_are_skipped(
    speaker: Path, comparisons: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (comparisons / "rows.jsonl").read_text() + '{"problem": "x", "solution": "y"}\n'
    rows = tmp_path / "rows.jsonl"
    rows.write_text(text)
    flags = ("--data_path", str(rows), "--skip_bad_rows")
    found, held_out = load(speaker, comparisons, tmp_path / "out", *flags)
    assert (len(found.rows), len(found.problems), held_out) == (8, 1, None)
    assert f"1 bad rows are skipped; the first: {rows}:9: " in capsys.readouterr().err
