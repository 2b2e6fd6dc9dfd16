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
    heldout_new=6,
)
SEEN = r"(\w+) \((\d\d)/40\)"
COT = re.compile(
    rf"<think>\n1\. Shade: Image 1 {SEEN}; Image 2 {SEEN}\n"
    rf"2\. Size: Image 1 {SEEN}; Image 2 {SEEN}\n"
    r"Total score:\nImage 1: (\d+)\+(\d+)=(\d+)\nImage 2: (\d+)\+(\d+)=(\d+)\n</think>\n"
    r"<answer>Image ([12]) is better</answer>"
)


def test_every_cot_adds_up_and_answers_by_its_totals() -> None:
    for scene in world.scenes("heldout", WorldSettings(heldout=400)):
        found = COT.fullmatch(world.teacher_cot(scene))
        assert found
        # (word, score): shade of both images, then size of both.
        seen = [found.groups()[i : i + 2] for i in range(0, 8, 2)]
        *totals, answer = (int(part) for part in found.groups()[8:])
        for i, thing in enumerate(scene.things):
            shade, size = seen[i], seen[2 + i]
            assert (shade[0], size[0]) == world.words(thing)
            first, second = int(shade[1]), int(size[1])
            steps = [abs(a - b) for a, b in zip(thing, scene.wanted, strict=True)]
            assert (first, second) == (40 - 3 * steps[0], 40 - 2 * steps[1])
            assert totals[3 * i : 3 * i + 3] == [first, second, first + second]
        assert abs(totals[2] - totals[5]) == world.GAPS[scene.kind]
        assert answer == scene.label == (1 if totals[2] > totals[5] else 2)
        verdict = judge(world.teacher_cot(scene), TASKS["image_generation"], scene.label, "stop")
        assert verdict == Verdict("correct", "coherent", scene.label)


def test_labels_and_gaps_have_their_shares() -> None:
    for close in (0.0, 0.7, 1.0):
        for pool in POOLS:
            members = world.scenes(pool, WorldSettings(close=close))
            assert sum(scene.label == 1 for scene in members) == len(members) // 2
            assert abs(sum(s.kind == "close" for s in members) - close * len(members)) < 1


def test_only_one_pool_shows_the_new_combinations_and_only_them() -> None:
    assert len(world.NEW_THINGS) == 16
    for place, values in enumerate((world.SHADES, world.SIZES)):
        shown = [thing[place] for thing in world.NEW_THINGS]
        assert sorted(shown) == sorted([*range(len(values))] * 2)
    for pool in POOLS:
        shown = {t for s in world.scenes(pool, WorldSettings()) for t in (s.wanted, *s.things)}
        new = {thing for thing in shown if world.is_new(thing)}
        assert new == (shown if pool == "heldout_new" else set())


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
    things = ((7, 0), (0, 7))
    scene = world.Scene("x", things[0], things, 1, "clear")
    for (_, image), (shade, size) in zip(
        world.pictures(scene, dataclasses.replace(SMALL, noise=0.0)), things, strict=True
    ):
        assert image.size == (world.SIDE_PIXELS, world.SIDE_PIXELS)
        assert image.mode == "RGB"
        shown = (np.asarray(image) == world.GREY_LEVELS[shade]).all(axis=2).sum()
        assert abs(shown / (np.pi * world.RADII[size] ** 2) - 1) < 0.25


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("media") / "demo"
    world.write_data(dataclasses.replace(SMALL, out=out), ["test"])
    return out


def test_pools_have_no_picture_in_common(written: Path) -> None:
    files = sorted((written / "images").iterdir())
    assert len(files) == 2 * (12 + 20 + 21 + 8 + 10 + 6)
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
