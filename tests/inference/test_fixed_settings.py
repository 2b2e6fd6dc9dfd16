"""Resumed runs: folders of earlier versions, and settings that must not change."""

import json

import pytest
from cot_reward.errors import UserError
from cot_reward.inference.fixed_settings import continued_settings, previous_settings, run_hash

SETTINGS = {
    "model": "mock", "temperature": 1.0, "top_p": 1.0, "max_tokens": 9, "seed": 0,
    "image_max_pixels": 100, "orders": "both", "templates": {"image_generation": "a"},
    "sampling_defaults": "neutral", "chat_template_kwargs": None, "form": "think",
}  # fmt: skip


def test_a_folder_from_before_the_flag_was_called_adapter_is_continued(world, server):
    assert world.call("--num-samples", 1, "--source", "upstream") == 0
    rows, path = world.judged, world.out / "settings.json"
    old = json.loads(path.read_text())
    old["source"] = old.pop("adapter")
    assert old["source"] == "upstream"
    path.write_text(json.dumps(old))
    server.configure()
    config = world.out.with_name("old.yaml")
    config.write_text("source: upstream\n")
    assert world.call("--num-samples", 1, "--config", config) == 0
    assert server.log() == []
    assert world.judged == rows
    new = json.loads(path.read_text())
    assert new["adapter"] == "upstream"
    assert "source" not in new


def test_templates_of_other_tasks_are_kept(tmp_path):
    now = SETTINGS | {"orders": "given", "templates": {"image_understanding": "b"}}
    continued = continued_settings(tmp_path / "settings.json", SETTINGS, now)
    assert continued["templates"] == {"image_generation": "a", "image_understanding": "b"}
    assert continued["orders"] == "given"
    assert run_hash(continued) == run_hash(SETTINGS)
    assert continued_settings(tmp_path / "settings.json", {}, now) == now


@pytest.mark.parametrize(
    "change",
    [
        {"model": "other"},
        {"seed": 1},
        {"templates": {"image_generation": "b"}},
        {"sampling_defaults": "server"},
        {"chat_template_kwargs": '{"enable_thinking": false}'},
        {"form": "json"},
    ],
)
def test_other_settings_are_refused(tmp_path, change):
    with pytest.raises(UserError, match="holds a run with other settings"):
        continued_settings(tmp_path / "settings.json", SETTINGS, SETTINGS | change)


def test_a_folder_from_before_sampling_was_neutral_is_told_of(tmp_path):
    old = {k: v for k, v in SETTINGS.items() if k not in ("sampling_defaults",)}
    path = tmp_path / "settings.json"
    with pytest.raises(UserError, match="sampling_defaults: 'server' there, 'neutral' now"):
        continued_settings(path, old, SETTINGS)
    as_before = SETTINGS | {"sampling_defaults": "server"}
    assert continued_settings(path, old, as_before) == as_before
    # Its journal's hash was made of the older settings alone.
    assert run_hash(as_before) == run_hash(old) == "6b7fa263ffb3228f"
    assert run_hash(SETTINGS) != run_hash(old)


def test_a_settings_file_that_cannot_be_used_is_named(tmp_path):
    path = tmp_path / "settings.json"
    assert previous_settings(path) == {}
    for text in ("{", "[]", '{"model": "mock"}', '{"templates": 7}'):
        path.write_text(text)
        with pytest.raises(UserError, match="not a run's settings; restore or remove it"):
            previous_settings(path)
