"""Every task from raw rows to DPO rows: convert, ask, judge, ask again, merge, check."""

import json
from pathlib import Path
from typing import Any

import pytest
from cot_reward import settings
from cot_reward.errors import UserError
from cot_reward.inference.run import infer
from cot_reward.inference.settings import InferenceSettings
from cot_reward.media.images import load_image
from cot_reward.pairing.run import merge
from cot_reward.pairing.settings import MergeSettings
from cot_reward.preparing.convert import convert
from cot_reward.preparing.settings import ConvertSettings
from cot_reward.records import ORDERS
from cot_reward.rows.checking import check_files
from cot_reward.tasks import TASKS
from helpers.pictures import picture
from helpers.rows import read_lines, write_lines
from helpers.server import MockServer
from helpers.videos import shade, video

FRAMES = 4
# Of each task: its columns, the media of a row by column, and how many images a prompt shows.
COLUMNS = {
    "image_generation": ({"first": "a", "second": "b"}, 2),
    "video_generation": ({"first": "v", "second": "w"}, 2 * FRAMES),
    "image_editing": ({"first": "a", "second": "b", "context": "c"}, 3),
    "image_understanding": ({"first": "x", "second": "y", "context": "a"}, 1),
    "video_understanding": ({"first": "x", "second": "y", "context": "v"}, FRAMES),
}


@pytest.fixture(scope="module")
def server():
    with MockServer() as running:
        yield running


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks") / "media"
    for number in range(4):
        for place, name in enumerate("abc"):
            picture(folder / f"raw/{name}{number}.png", (number, 60 * place, 90))
        video(folder / f"raw/v{number}.mp4", [10 + number] * 9)
        video(folder / f"raw/w{number}.mp4", [200 + number] * 9)
    return folder


def parsed(cls: type[Any], *flags: object) -> Any:
    return settings.parse(cls, "", argv=list(map(str, flags)))


def ask(root: Path, server: MockServer, out: Path, *flags: object) -> list[dict[str, Any]]:
    (root / "empty.yaml").write_text("")
    given = ["--config", root / "empty.yaml", "--media-root", root, "--base-url", server.url,
             "--out", out, "--num-samples", 8, "--min-parsed", 0, *flags]  # fmt: skip
    assert infer(parsed(InferenceSettings, *given), api_key="none") == 0
    return [
        r
        for name in ("correct", "incorrect", "unusable")
        for r in read_lines(out / f"{name}.jsonl")
    ]


def raw_file(root: Path, task: str) -> Path:
    rows = [
        {"text": f"caption {n}", "pref": "AB"[n % 2], "x": f"A cat {n}.", "y": f"A dog {n}."}
        | {name: f"raw/{name}{n}.png" for name in "abc"}
        | {name: f"raw/{name}{n}.mp4" for name in "vw"}
        for n in range(4)
    ]
    return write_lines(root.parent / f"{task}.jsonl", rows)


@pytest.mark.parametrize("task", list(TASKS))
def test_a_task_from_raw_rows_to_dpo_rows(
    root: Path, server: MockServer, task: str, tmp_path: Path
) -> None:
    columns, shown = COLUMNS[task]
    pairs = [f"{target}={source}" for target, source in columns.items()]
    assert convert(parsed(
        ConvertSettings, raw_file(root, task), "--task", task, "--map", "text=text", "label=pref",
        *pairs, "--labels", "A=1", "B=2", "--media-root", root, "--out", root / task,
        "--frames", FRAMES,
    )) == 0  # fmt: skip
    plain = root / task / "rows-00000.jsonl"

    server.configure()
    rows = ask(root, server, tmp_path / "one", "--data", plain)
    assert len(rows) == 4 * len(ORDERS) * 8
    sent = server.log()
    assert {len(request["images"]) for request in sent} == {shown}
    for row in rows:
        assert (row["task"], len(row["images"]), row["videos"]) == (task, shown, [])
        assert row["conversations"][0]["value"].count("<image>") == shown
    _check_order(root, task, rows, plain)

    # A later pass reads the judged rows, and knows the same comparisons by the same keys.
    answered = [tmp_path / f"one/{name}.jsonl" for name in ("correct", "incorrect")]
    again = ask(root, server, tmp_path / "two", "--data", *answered, "--seed", 5)
    assert {row["id"] for row in again} == {row["id"] for row in rows}
    assert {(row["id"], row["order"], row["label"]) for row in again} == {
        (row["id"], row["order"], row["label"]) for row in rows
    }

    out = root / f"{task}_dpo"
    assert merge(parsed(
        MergeSettings, "--correct", tmp_path / "two/correct.jsonl", "--incorrect",
        tmp_path / "one/incorrect.jsonl", "--media-root", root, "--out", out,
    )) == 0  # fmt: skip
    made = read_lines(out / "train.jsonl")
    assert made
    assert {(row["task"], len(row["images"])) for row in made} == {(task, shown)}
    findings = check_files([out / "train.jsonl", *answered], root, workers=2)
    assert findings.problems == []

    # The plain rows are held out by their keys, whatever form the other data have.
    with pytest.raises(UserError, match="excluded"):
        merge(parsed(
            MergeSettings, "--correct", tmp_path / "two/correct.jsonl", "--incorrect",
            tmp_path / "one/incorrect.jsonl", "--media-root", root, "--out", tmp_path / "none",
            "--exclude", plain,
        ))  # fmt: skip


def test_every_task_of_a_run_may_have_a_template_of_its_own(
    root: Path, server: MockServer, tmp_path: Path
) -> None:
    data = write_lines(tmp_path / "mixed.jsonl", [
        {"task": "image_generation", "text": "one", "candidates": ["raw/a0.png", "raw/b0.png"],
         "label": 1},
        {"task": "image_editing", "text": "two", "candidates": ["raw/a0.png", "raw/b0.png"],
         "label": 2, "context": ["raw/c0.png"]},
    ])  # fmt: skip
    images, edits = tmp_path / "images.txt", tmp_path / "edits.txt"
    images.write_text("Images of [{caption}]?")
    edits.write_text("Edits by [{instruction}]?")
    server.configure()
    flags = ["--data", data, "--orders", "given"]
    with pytest.raises(UserError, match="a file for this task alone is named by --template image_"):
        ask(root, server, tmp_path / "out", *flags, "--template", images)
    both = ["--template", f"image_editing={edits}", images]
    rows = ask(root, server, tmp_path / "out", *flags, *both)
    assert {row["conversations"][0]["value"] for row in rows} == {
        "<image><image>Images of [one]?", "<image><image><image>Edits by [two]?",
    }  # fmt: skip
    with pytest.raises(UserError, match=r"template of image_editing: .* there, .* now"):
        ask(root, server, tmp_path / "out", *flags, "--template", f"image_generation={images}")


def _check_order(root: Path, task: str, rows: list[dict[str, Any]], plain: Path) -> None:
    """A swap exchanges the candidates and the label, and leaves the rest in its place."""
    for row in read_lines(plain):
        given, swapped = (
            next(r for r in rows if row["text"] in json.dumps(r) and r["order"] == order)
            for order in ORDERS
        )
        assert given["label"] == row["label"]
        assert swapped["label"] == 3 - row["label"]
        if not TASKS[task].compares_media:
            assert given["images"] == swapped["images"] == row["context"]
            prompts = [r["conversations"][0]["value"] for r in (given, swapped)]
            first, second = row["candidates"]
            assert f"Answer 1: [{first}]" in prompts[0]
            assert f"Answer 1: [{second}]" in prompts[1]
            continue
        sides = [one if isinstance(one, list) else [one] for one in row["candidates"]]
        context = row.get("context", [])
        assert given["images"] == [*context, *sides[0], *sides[1]]
        assert swapped["images"] == [*context, *sides[1], *sides[0]]
        if task == "video_generation":
            shades = [shade(load_image(root / path)) for path in given["images"]]
            assert max(shades[:FRAMES]) < 60 < 150 < min(shades[FRAMES:])
