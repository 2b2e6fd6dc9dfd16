"""The demo's settings: the shipped files load, bad values are refused, the template is read."""

import dataclasses
from pathlib import Path

import pytest
from cot_reward import settings as settings_module
from cot_reward.demo.settings import BaseSettings, WorldSettings
from cot_reward.errors import UserError
from helpers.environments import REPO

TEMPLATE = REPO / "configs/demo/template.txt"


def test_the_template_asks_for_what_the_judge_reads() -> None:
    text = WorldSettings(template=TEMPLATE).read_template()
    for part in ("<think>", "<answer>", "Image 1 is better", "Image 2 is better"):
        assert part in text
    assert text.endswith("Text Caption: [{caption}]")


@pytest.mark.parametrize("content", [None, "no field for the caption"])
def test_a_template_that_cannot_be_used_is_named(tmp_path: Path, content: str | None) -> None:
    template = tmp_path / "template.txt"
    if content is not None:
        template.write_text(content)
    with pytest.raises(UserError, match=r"template\.txt: "):
        WorldSettings(template=template).read_template()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"close": 1.5}, "at most 1"),
        ({"dpo": -1}, "negative"),
    ],
)
def test_bad_settings_of_the_world_are_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(WorldSettings(), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"heads": 3}, "heads"), ({"batch": 63}, "processes"), ({"batch": -2}, "negative")],
)
def test_bad_settings_of_the_base_are_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BaseSettings(**changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("config", ["configs/demo/world.yaml", "configs/demo/smoke/world.yaml"])
def test_shipped_configs_load(config: str) -> None:
    both = (WorldSettings, BaseSettings)
    settings, _ = settings_module.parse_several(both, "", config=REPO / config, argv=[])
    names = {field.name for cls in both for field in dataclasses.fields(cls)}
    assert set(settings_module.read_yaml(REPO / config, names)) == names
    assert settings.heldout >= (500 if "smoke" not in config else 1)
