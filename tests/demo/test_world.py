"""The demo's world: pools, pictures, chains of thought to start from, and the data files."""

import dataclasses
import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
from cot_reward.demo import world
from cot_reward.demo.settings import POOLS, WorldSettings
from cot_reward.judge import judge
from cot_reward.records import Verdict
from cot_reward.tasks import TASKS
from helpers.environments import REPO
from PIL import Image

SMALL = WorldSettings(
    template=REPO / "configs/demo/template.txt",
    cold_start=12,
    rejection=20,
    dpo=21,
    validation=8,
    heldout=10,
)
SEEN = r"(\w+) (yes|no) \((\d+)/10\)"
COT = re.compile(
    rf"<think>\n1\. Colour: Image 1 {SEEN}; Image 2 {SEEN}\n"
    rf"2\. Shape: Image 1 {SEEN}; Image 2 {SEEN}\n"
    r"Total score:\nImage 1: (\d+)\+(\d+)=(\d+)\nImage 2: (\d+)\+(\d+)=(\d+)\n</think>\n"
    r"<answer>Image ([12]) is better</answer>"
)


def test_every_cot_adds_up_and_answers_by_its_totals() -> None:
    for scene in world.scenes("heldout", WorldSettings(heldout=400)):
        found = COT.fullmatch(world.teacher_cot(scene))
        assert found
        # (word, verdict, score): colour of both images, then shape of both.
        seen = [found.groups()[i : i + 3] for i in range(0, 12, 3)]
        *totals, answer = (int(part) for part in found.groups()[12:])
        for i, thing in enumerate(scene.things):
            colour, shape = seen[i], seen[2 + i]
            assert (colour[0], shape[0]) == thing
            fits = tuple(a == b for a, b in zip(thing, scene.wanted, strict=True))
            assert (colour[1] == "yes", shape[1] == "yes") == fits
            first, second = int(colour[2]), int(shape[2])
            assert totals[3 * i : 3 * i + 3] == [first, second, first + second]
        assert totals[2] != totals[5]
        assert answer == scene.label == (1 if totals[2] > totals[5] else 2)
        totals = [sum(world.points(scene.wanted, thing)) for thing in scene.things]
        assert totals[scene.label - 1] > totals[2 - scene.label]
        verdict = judge(world.teacher_cot(scene), TASKS["image_generation"], scene.label, "stop")
        assert verdict == Verdict("correct", "coherent", scene.label)


def test_labels_and_kinds_are_balanced() -> None:
    settings = WorldSettings()
    for pool in POOLS:
        members = world.scenes(pool, settings)
        assert sum(scene.label == 1 for scene in members) == len(members) // 2
        for kind, share in zip(world.KINDS, settings.mix, strict=True):
            assert abs(sum(s.kind == kind for s in members) - share * len(members)) < 1
        for scene in members:
            fits = [
                tuple(a == b for a, b in zip(thing, scene.wanted, strict=True))
                for thing in scene.things
            ]
            differs = tuple(a != b for a, b in zip(*fits, strict=True))
            decided_by = {"colour": (True, False), "shape": (False, True), "both": (True, True)}
            assert differs == decided_by[scene.kind]


def test_the_better_picture_is_flawed_as_often_as_asked() -> None:
    for share in (0.0, 0.4, 1.0):
        members = world.scenes("dpo", WorldSettings(flawed=share))
        flawed = sum(scene.things[scene.label - 1] != scene.wanted for scene in members)
        assert abs(flawed / len(members) - share) < 0.05


def test_the_seed_decides_everything() -> None:
    other = dataclasses.replace(SMALL, seed=1)
    scenes = world.scenes("dpo", SMALL)
    assert scenes == world.scenes("dpo", SMALL)
    assert scenes != world.scenes("dpo", other)

    def pixels(settings: WorldSettings) -> list[bytes]:
        return [image.tobytes() for _, image in world.pictures(scenes[0], settings)]

    assert pixels(SMALL) == pixels(SMALL)
    assert pixels(SMALL) != pixels(other)


def test_pictures_show_their_thing() -> None:
    scene = world.Scene("x", ("red", "square"), (("red", "square"), ("white", "circle")), 1, "both")
    for (_, image), (colour, _) in zip(
        world.pictures(scene, dataclasses.replace(SMALL, noise=0.0)), scene.things, strict=True
    ):
        assert image.size == (world.SIDE_PIXELS, world.SIDE_PIXELS)
        assert image.mode == "RGB"
        shown = (np.asarray(image) == world.COLOURS[colour]).all(axis=2).mean()
        assert 0.05 < shown < 0.6


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("media") / "demo"
    world.write_data(dataclasses.replace(SMALL, out=out), ["test"])
    return out


def test_pools_have_no_picture_in_common(written: Path) -> None:
    files = sorted((written / "images").iterdir())
    assert len(files) == 2 * (12 + 20 + 21 + 8 + 10)
    assert len({hashlib.sha256(file.read_bytes()).digest() for file in files}) == len(files)
    named = [
        Path(name).name
        for pool in POOLS
        for row in json.loads((written / f"{pool}.json").read_text())
        for name in row["images"]
    ]
    assert sorted(named) == [file.name for file in files]


def test_rows_have_the_contracts_forms(written: Path) -> None:
    for row in json.loads((written / "cold_start.json").read_text()):
        assert list(row) == ["conversations", "images"]
        human, gpt = row["conversations"]
        assert human["from"] == "human"
        assert human["value"].startswith("<image><image>")
        assert human["value"].count("<image>") == 2
        assert gpt["from"] == "gpt"
        assert COT.fullmatch(gpt["value"])
        for name in row["images"]:
            with Image.open(written.parent / name) as image:
                image.load()
    for pool in POOLS[1:]:
        rows = json.loads((written / f"{pool}.json").read_text())
        for row, scene in zip(rows, world.scenes(pool, SMALL), strict=True):
            assert list(row) == ["prompt", "images", "conversations"]
            assert row["prompt"] == scene.caption
            human, gpt = row["conversations"]
            assert human["value"].count("<image>") == 2
            assert "<think>" not in human["value"]
            better, worse = scene.label, 3 - scene.label
            assert gpt["value"] == f"Image {better} is better than Image {worse}."


def test_a_second_run_does_nothing_and_other_settings_do(written: Path) -> None:
    settings = dataclasses.replace(SMALL, out=written)
    summary = json.loads((written / "summary.json").read_text())
    assert summary["counts"]["dpo"]["rows"] == 21
    before = (written / "dpo.json").stat().st_mtime_ns
    assert world.write_data(settings, ["again"]) == summary
    assert (written / "dpo.json").stat().st_mtime_ns == before
    signature = dataclasses.replace(settings, dpo=22).signature
    assert world.read_summary(written, signature) is None
