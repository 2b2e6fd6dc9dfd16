"""What the nodes of a training of LLaMA-Factory must have in common."""

import json
from pathlib import Path

import pytest
import yaml
from cot_reward.errors import UserError
from cot_reward.sft.start import facts_of, remove_mark


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A training of one row, in the working folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    (tmp_path / "a.png").write_bytes(b"1234")
    (tmp_path / "rows.json").write_text(json.dumps([{"pictures": ["a.png"], "videos": None}]))
    columns = {"messages": "conversations", "images": "pictures", "videos": "videos"}
    info = {"rows": {"file_name": "rows.json", "columns": columns}}
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))
    (tmp_path / "zero2.json").write_text("{}")
    config = {
        "model_name_or_path": "model", "dataset": "rows", "dataset_dir": ".", "media_dir": ".",
        "output_dir": "out", "save_strategy": "no", "deepspeed": "zero2.json",
    }  # fmt: skip
    (tmp_path / "sft.yaml").write_text(yaml.safe_dump(config))
    return ["sft.yaml"]


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


def test_each_input_is_told_by_itself(arguments: list[str]) -> None:
    before = facts_of(arguments, 0)
    assert facts_of(arguments, 1) == before
    for path, content, name in (
        ("a.png", "12345", "the media below ."),
        ("zero2.json", "[]", "zero2.json"),
        ("model/config.json", "[]", "the files of model"),
        ("rows.json", '[{"pictures": ["a.png"]}]', "rows.json"),
        ("rows.json", '[{"pictures": "a.png"}]', "rows.json"),
        ("rows.json", '[{"pictures": ["a.png"], "videos": [["a.png"], ["a.png"]]}]', "rows.json"),
    ):
        kept = Path(path).read_text()
        Path(path).write_text(content)
        assert changed(before, facts_of(arguments, 0)) == {name}
        Path(path).write_text(kept)
    after = facts_of([*arguments, "learning_rate=1e-5"], 0)
    assert changed(before, after) == {"learning_rate of sft.yaml"}
    assert not Path("out").exists()


def test_what_llama_factory_would_leave_out_is_refused(arguments: list[str]) -> None:
    Path("a.png").unlink()
    with pytest.raises(UserError, match=r"\Aa\.png: no such file below the media root"):
        facts_of(arguments, 1)
    Path("rows.json").write_text('[{"pictures": null}, {"pictures": 3}]')
    with pytest.raises(UserError, match=r"\Arows\.json:2: 'pictures' must be a path or a list"):
        facts_of(arguments, 0)
    Path("rows.json").unlink()
    with pytest.raises(UserError, match=r"rows\.json: no such file"):
        facts_of(arguments, 1)


def test_a_model_of_the_hub_is_told_by_its_commit(arguments: list[str]) -> None:
    of_hub = [*arguments, "model_name_or_path=maker/model", "cache_dir=hub"]
    name = "the commit of maker/model in the cache of the hub"
    assert facts_of(of_hub, 1)[name] == "not there"
    folder = Path("hub/models--maker--model")
    for commit in ("a" * 40, "b" * 40):
        (folder / "snapshots" / commit).mkdir(parents=True)
        (folder / "snapshots" / commit / "config.json").write_text("{}")
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs/main").write_text(commit)
        assert facts_of(of_hub, 1)[name] == commit
    assert facts_of([*of_hub, f"model_revision={'a' * 40}"], 1)[name] == "a" * 40
    assert (
        facts_of([*arguments, "model_name_or_path=not/a/name"], 1)[
            "the commit of not/a/name in the cache of the hub"
        ]
        == "not there"
    )


def test_with_checkpoints_the_output_folder_must_be_one(arguments: list[str]) -> None:
    saving = [*arguments, "save_strategy=epoch"]
    before, seen = facts_of(saving, 0), facts_of(saving, 1)
    assert before == seen
    # Another node without this folder.
    Path("out").rename("elsewhere")
    (name,) = changed(before, facts_of(saving, 1))
    assert "which all nodes must share" in name
    # The way out that it tells of is one.
    assert "save_strategy='\"no\"'" in name
    assert name not in facts_of([*arguments, 'save_strategy="no"'], 1)
    Path("elsewhere").rename("out")
    remove_mark(saving)
    assert not list(Path("out").iterdir())
