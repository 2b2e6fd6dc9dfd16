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


def rapidata_image(data: Callable[[str], bytes]) -> Case:
    def row(number: int, first: float) -> dict[str, Any]:
        one, other = ({"bytes": data(f"{n}.png"), "path": None} for n in (number, number + 1))
        return {
            "prompt": f"cat {number}", "image1": one, "image2": other, "model1": "x",
            "model2": "4o", "weighted_results_image1_preference": first,
            "weighted_results_image2_preference": 1 - first, "detailed_results_preference": "[]",
        }  # fmt: skip

    return [row(0, 0.8), row(1, 0.3), row(0, 0.45)], {("cat 0", 0, 1), ("cat 1", 2, 1)}


def evalmuse_ratings(data: Callable[[str], bytes]) -> Case:
    rated = (("00012", 0, [5, 4, 5]), ("00007", 1, [3, 3, 3]), ("00012", 2, [2, 3, 2]),
             ("00012", 3, [5, 5, 4]), ("00007", 0, [1, 1, 2]))  # fmt: skip
    rows = [
        {"prompt_id": prompt, "prompt": f"cat {prompt}", "type": "real", "img_path": f"{n}.png",
         "total_score": scores, "element_score": "{}", "promt_meaningless": [0, 0, 0]}
        for prompt, n, scores in rated
    ]  # fmt: skip
    return rows, {("cat 00012", 0, 2), ("cat 00012", 3, 2), ("cat 00007", 1, 0)}


def videodpo(data: Callable[[str], bytes]) -> Case:
    def row(first: int, second: int, better: int) -> dict[str, Any]:
        said = f"Video {better} is better than Video {3 - better}."
        return {
            "prompt": f"cat {first}", "images": [f"{first}.png"] * 8 + [f"{second}.png"] * 8,
            "conversations": [{"from": "human", "value": "<image>" * 16 + "Which?"},
                              {"from": "gpt", "value": said}],
        }  # fmt: skip

    return [row(0, 1, 1), row(1, 2, 2)], {("cat 0", 0, 1), ("cat 1", 2, 1)}


CASES = (
    editreward, evalmuse_ratings, pickapic, hpdv3, imagerewarddb, rapidata_image, rapidata_video,
    videodpo,
)  # fmt: skip


def llavacritic(data: Callable[[str], bytes]) -> list[dict[str, Any]]:
    layouts = (
        ("Response 1: [{}]\nResponse 2: [{}]\n", "The better response: [2]. Response 2 sees [b]."),
        ("The first response: [{}]\nThe second response: [{}]", "The better response: [second]"),
        ("Response A: [{}]\n\nResponse B: [{}]\n", "It says why.\nThe better response: [B]"),
        ("Response 1: [{}]\nResponse 2: [{}]", "In the end both responses are equally good."),
    )
    return [
        {
            "id": str(n), "source": "x", "image": {"bytes": data("0.png"), "path": None},
            "conversations": [
                {"from": "human", "value": "<image>\nYou judge [answers].\nQuestion: [What is "
                 f"[there]?\nSay all.]\n{layout.format('a [cat]', 'a dog [2]')}"},
                {"from": "gpt", "value": said},
            ],
        }
        for n, (layout, said) in enumerate(layouts)
    ]  # fmt: skip


def sharegptvideo(data: Callable[[str], bytes]) -> list[dict[str, Any]]:
    return [
        {
            "id": f"{n}", "video": "0.mp4", "prompt": f"{mark}What is\nthere?", "answer": "a dog",
            "chosen": "a dog [2]", "rejected": "a [cat]", "chosen_score": 5, "rejected_score": 2,
        }
        for n, mark in enumerate(("<video>\n", ""))
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("case", "text", "count"),
    [(llavacritic, "What is [there]?\nSay all.", 3), (sharegptvideo, "What is\nthere?", 2)],
)
def test_a_set_of_answers_becomes_its_comparisons(
    tmp_path: Path,
    case: Callable[[Callable[[str], bytes]], list[dict[str, Any]]],
    text: str,
    count: int,
) -> None:
    rows = converted(tmp_path, case.__name__, case)
    assert len(rows) == count
    for row in rows:
        assert row["text"] == text
        assert row["candidates"][row["label"] - 1] == "a dog [2]"
        assert row["candidates"][2 - row["label"]] == "a [cat]"
        assert len(row["context"]) == (8 if row["task"] == "video_understanding" else 1)


@pytest.mark.parametrize("case", CASES)
def test_a_published_set_becomes_its_comparisons(
    tmp_path: Path, case: Callable[[Callable[[str], bytes]], Case]
) -> None:
    wanted: set[tuple[str, int, int]] = set()

    def rows(data: Callable[[str], bytes]) -> list[dict[str, Any]]:
        made, becomes = case(data)
        wanted.update(becomes)
        return made

    found = set()
    for row in converted(tmp_path, case.__name__, rows):
        numbers = [number_of(tmp_path / "media", candidate) for candidate in row["candidates"]]
        found.add((row["text"], numbers[row["label"] - 1], numbers[2 - row["label"]]))
    assert found == wanted


def converted(
    folder: Path, name: str, rows: Callable[[Callable[[str], bytes]], list[dict[str, Any]]]
) -> list[dict[str, Any]]:
    """What becomes of rows in Parquet by a map of configs/data/, none of them being bad."""
    root = folder / "media"
    for number in range(4):
        picture(root / f"{number}.png", (50 * number, 9, 9))
        video(root / f"{number}.mp4", [50 * number] * 9)
    contents = {file.name: file.read_bytes() for file in root.iterdir()}
    path = folder / "rows.parquet"
    parquet.write_table(pa.Table.from_pylist(rows(contents.__getitem__)), path)
    config = REPO / f"configs/data/{name}.yaml"
    argv = [path, "--config", config, "--media-root", root, "--out", root / "out"]
    assert convert(settings.parse(ConvertSettings, "", argv=list(map(str, argv)))) == 0
    assert json.loads((root / "out/summary.json").read_text())["bad"] == {}
    return read_lines(root / "out/rows-00000.jsonl")


def number_of(root: Path, candidate: str | list[str]) -> int:
    """Which of the pictures or videos it is, by its red or its grey."""
    from cot_reward.media.images import load_image

    path = candidate if isinstance(candidate, str) else candidate[0]
    shown = load_image(root / path).convert("RGB").getpixel((9, 9))
    assert isinstance(shown, tuple)
    return round(shown[0] / 50)


def test_every_map_is_tested() -> None:
    tested = {case.__name__ for case in (*CASES, llavacritic, sharegptvideo)}
    assert tested == {f.stem for f in REPO.glob("configs/data/*.yaml")}
