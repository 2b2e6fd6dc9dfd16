"""Data sets with image roots of their own, given together: FILE@ROOT in flags and in YAML."""

import json

import pytest
from cot_reward.errors import UserError
from helpers.pictures import picture
from helpers.rows import raw_row


@pytest.fixture
def sets(world):
    """Two files whose images have the same names below roots of their own."""
    files = {}
    for number, name in enumerate(("cats", "dogs@home")):
        for shade, image in enumerate(("a.png", "b.png")):
            picture(world.media / name / image, (100 * number, 40 * shade, 7))
        files[name] = world.media / f"{name}.json"
        files[name].write_text(json.dumps([raw_row(f"one of {name}", ["a.png", "b.png"])]))
    return files


def test_files_with_roots_of_their_own_are_one_run(world, sets, tmp_path, server):
    named = [f"{file}@{world.media / name}" for name, file in sets.items()]
    config = tmp_path / "mine.yaml"
    for given in (["--data", *named], ["--config", config]):
        base = {
            "data": named, "media_root": str(world.media), "base_url": server.url,
            "out": str(tmp_path / "out_yaml"), "num_samples": 1,
        }  # fmt: skip
        # JSON is YAML.
        config.write_text(json.dumps(base))
        world.out = tmp_path / ("out_yaml" if "--config" in given else "out_flags")
        world.base = ["--media-root", world.media, "--base-url", server.url, "--out", world.out]
        assert world.call("--num-samples", 1, *given) == 0
        assert {(row["source"], *sorted(row["images"])) for row in world.judged} == {
            (name, f"{name}/a.png", f"{name}/b.png") for name in sets
        }


def test_one_image_root_is_for_the_files_that_name_none(world, sets):
    """The image root of the world's command is that of its own file."""
    assert world.call("--num-samples", 1, "--data", f"{sets['cats']}@{world.media / 'cats'}") == 0
    sources = {(row["source"], row["images"][0].split("/")[0]) for row in world.judged}
    assert sources == {(str(world.data.stem), "images"), ("cats", "cats")}


def test_a_link_may_not_lead_out_of_the_root_that_a_file_names(world, sets):
    picture(world.media / "other/secret.png")
    (world.media / "cats/a.png").unlink()
    (world.media / "cats/a.png").symlink_to(world.media / "other/secret.png")
    flags = ["--num-samples", 1, "--data", f"{sets['cats']}@{world.media / 'cats'}"]
    assert world.call(*flags) == 0
    assert [entry["reason"] for entry in world.read("failed")] == ["escapes"] * 2


def test_a_root_that_is_contradicted_or_outside_is_refused(world, sets, tmp_path):
    def call(*flags):
        return world.call("--dry-run", *flags)

    cats = f"{sets['cats']}@{world.media / 'cats'}"
    images, cats_folder = world.media / "images", world.media / "cats"
    with pytest.raises(UserError, match=r"says .*images instead; leave one of the two out"):
        call("--data", cats, "--image-root", images)
    assert call("--data", cats, "--image-root", cats_folder) == 0
    with pytest.raises(UserError, match="not inside --media-root"):
        call("--data", f"{sets['cats']}@{tmp_path}")
    with pytest.raises(UserError, match=r"cats\.json@gone: gone is no folder"):
        call("--data", f"{sets['cats']}@gone")
    with pytest.raises(UserError, match=r"no such file, and no gone\.json either"):
        call("--data", "gone.json@cats")
