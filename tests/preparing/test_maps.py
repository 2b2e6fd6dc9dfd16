"""The maps of configs/data/ on rows in the columns and types that the sets' pages give."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from cot_reward import settings
from cot_reward.preparing.convert import convert
from cot_reward.preparing.settings import ConvertSettings
from helpers.environments import REPO
from helpers.pictures import picture
from helpers.rows import read_lines
from helpers.videos import video
from pyarrow import parquet

# Of a map: the rows, and what they become: (text, number of the better candidate, of the other).
Case = tuple[list[dict[str, Any]], set[tuple[str, int, int]]]


def pickapic(data: Callable[[str], bytes]) -> Case:
    def row(first: int, second: int, label: float) -> dict[str, Any]:
        return {
            "are_different": True, "best_image_uid": "u", "caption": "a cat", "has_label": True,
            "image_0_uid": "u", "image_0_url": "https://a.b/c.png", "jpg_0": data(f"{first}.png"),
            "jpg_1": data(f"{second}.png"), "label_0": label, "label_1": 1 - label, "user_id": 3,
        }  # fmt: skip

    return [row(0, 1, 1.0), row(1, 2, 0.0), row(2, 3, 0.5)], {("a cat", 0, 1), ("a cat", 2, 1)}


def hpdv3(data: Callable[[str], bytes]) -> Case:
    rows = [
        {"prompt": f"cat {n}", "path1": f"{n}.png", "path2": f"{n + 1}.png", "confidence": 0.9,
         "model1": "x", "model2": "y"}
        for n in range(3)
    ]  # fmt: skip
    return rows, {(f"cat {n}", n, n + 1) for n in range(3)}


def imagerewarddb(data: Callable[[str], bytes]) -> Case:
    rows = [
        {"image": {"bytes": data(f"{n}.png"), "path": f"{n}.webp"}, "prompt_id": prompt,
         "prompt": f"cat {prompt}", "rank": rank, "overall_rating": 4}
        for prompt, ranks in (("000", (2, 1, 2)), ("001", (1, 2)))
        for n, rank in enumerate(ranks)
    ]  # fmt: skip
    return rows, {("cat 000", 1, 0), ("cat 000", 1, 2), ("cat 001", 0, 1)}


def rapidata_video(data: Callable[[str], bytes]) -> Case:
    def row(number: int, first: float) -> dict[str, Any]:
        return {
            "prompt": f"cat {number}", "video1": f"{number}.mp4", "video2": f"{number + 1}.mp4",
            "weighted_results1_Coherence": first, "weighted_results2_Coherence": 1 - first,
        }  # fmt: skip

    return [row(0, 0.8), row(1, 0.3), row(0, 0.55)], {("cat 0", 0, 1), ("cat 1", 2, 1)}


def editreward(data: Callable[[str], bytes]) -> Case:
    def row(number: int, vote: str) -> dict[str, Any]:
        source, left, right = (
            {"bytes": data(f"{n}.png"), "path": None} for n in (3, number, number + 1)
        )
        return {
            "dev_id": "0", "instruction": f"cat {number}", "source_image": source,
            "left_image": left, "right_image": right, "vote_type": vote, "left_overall_score": 4,
        }  # fmt: skip

    rows = [row(0, "leftvote"), row(1, "rightvote"), row(0, "tie")]
    return rows, {("cat 0", 0, 1), ("cat 1", 2, 1)}


CASES = (editreward, pickapic, hpdv3, imagerewarddb, rapidata_video)


@pytest.mark.parametrize("case", CASES)
def test_a_published_set_becomes_its_comparisons(
    tmp_path: Path, case: Callable[[Callable[[str], bytes]], Case]
) -> None:
    root = tmp_path / "media"
    for number in range(4):
        picture(root / f"{number}.png", (50 * number, 9, 9))
        video(root / f"{number}.mp4", [50 * number] * 9)
    contents = {file.name: file.read_bytes() for file in root.iterdir()}
    rows, wanted = case(contents.__getitem__)
    path = tmp_path / "rows.parquet"
    parquet.write_table(pa.Table.from_pylist(rows), path)
    config = REPO / f"configs/data/{case.__name__}.yaml"
    argv = [path, "--config", config, "--media-root", root, "--out", root / "out"]
    assert convert(settings.parse(ConvertSettings, "", argv=list(map(str, argv)))) == 0
    found = set()
    for row in read_lines(root / "out/rows-00000.jsonl"):
        numbers = [number_of(root, candidate) for candidate in row["candidates"]]
        found.add((row["text"], numbers[row["label"] - 1], numbers[2 - row["label"]]))
    assert found == wanted
    assert json.loads((root / "out/summary.json").read_text())["bad"] == {}


def number_of(root: Path, candidate: str | list[str]) -> int:
    """Which of the pictures or videos it is, by its red or its grey."""
    from cot_reward.media.images import load_image

    path = candidate if isinstance(candidate, str) else candidate[0]
    shown = load_image(root / path).convert("RGB").getpixel((9, 9))
    assert isinstance(shown, tuple)
    return round(shown[0] / 50)


def test_every_map_is_tested() -> None:
    assert {case.__name__ for case in CASES} == {f.stem for f in REPO.glob("configs/data/*.yaml")}
