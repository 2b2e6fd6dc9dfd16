"""DPO rows: what is read, refused, and made of them."""

import json
from pathlib import Path
from typing import Any

import pytest
from cot_reward.dpo.pairs import conversational, group_labels, load_pairs
from cot_reward.errors import UserError
from cot_reward.judge import judge
from cot_reward.tasks import TASKS
from helpers.dpo import CAPTION, row, write
from helpers.environments import REPO
from helpers.rows import read_lines
from PIL import Image


def test_prompt_stands_once_and_images_where_their_placeholders_were() -> None:
    got = conversational(row(["a.png", "b.png"], problem="One: <image>\ntwo: <image>. Judge."))
    assert got["prompt"] == [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "One: "},
                {"type": "image"},
                {"type": "text", "text": "\ntwo: "},
                {"type": "image"},
                {"type": "text", "text": ". Judge."},
            ],
        }
    ]
    assert got["chosen"] == [{"role": "assistant", "content": row([])["chosen"]}]
    assert got["image_paths"] == ["a.png", "b.png"]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"problem": "<image>" + CAPTION}, "1 <image> in the prompt, but 2 in 'images'"),
        ({"images": ["0.png", "gone.png"]}, "gone.png: no such file"),
        ({"images": ["0.png", "../0.png"]}, "out of the media root"),
        ({"rejected": row([])["chosen"]}, "are the same text"),
        ({"chosen": " \n"}, "'chosen' is empty"),
        ({"problem": "<image><image> "}, "the prompt is empty"),
        ({"chosen": None}, "'chosen' must be of type str, not None"),
        ({"images": "0.png"}, "'images' must be of type list"),
        ({"images": [0, 1]}, "a media path must be a string, not 0"),
        ({"videos": ["v.mp4"]}, "has videos"),
        ({"chosen": "<|image_pad|>"}, "holds <|image_pad|>"),
        ({"rejected": "an <image> of it"}, "'rejected' holds <image>; a trainer would look"),
        ({"chosen": ["x" * 10**6]}, "'chosen' must be of type str"),
        ({"images": ["0.png", "\x1b[2J.png"]}, "\\x1b[2J.png: no such file"),
        ({"problem": CAPTION, "images": []}, "has no images"),
    ],
)
def test_a_bad_row_is_named_by_its_line(
    folder: Path, tmp_path: Path, changes: dict[str, Any], problem: str
) -> None:
    good = row(["0.png", "1.png"])
    path = write(tmp_path / "rows.jsonl", [good, good | changes, good])
    with pytest.raises(UserError) as caught:
        load_pairs(path, str(folder))
    head, line, way_out = str(caught.value).split("\n")
    assert "--skip_bad_rows" in way_out
    kept = load_pairs(path, str(folder), skip_bad_rows=True)
    assert len(kept.rows) == 2
    assert problem in kept.problems[0]
    assert head == f"{path}: 1 of 3 rows cannot be used:"
    assert line.startswith("  line 2: ")
    assert problem in line
    assert len(line) < 300


def test_the_first_ten_of_many_bad_rows_are_shown(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write(path, [row(["gone.png", "1.png"])] * 30)
    path.write_text("not json\n[1]\n\n" + path.read_text())
    with pytest.raises(UserError, match="32 of 32 rows") as caught:
        load_pairs(str(path), str(folder))
    lines = str(caught.value).splitlines()
    assert len(lines) == 13
    assert lines[1].startswith("  line 1: not valid JSON")
    assert lines[2] == "  line 2: not an object"
    assert lines[3].startswith("  line 4: gone.png")
    assert lines[-2] == "  and 22 more"


def test_a_json_list_is_read_too(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(json.dumps([row(["0.png", "1.png"])] * 3, indent=1))
    assert len(load_pairs(str(tmp_path / "rows.json"), str(folder)).rows) == 3


@pytest.mark.parametrize("kind", ["cut", "text", "empty", "thin"])
def test_a_picture_that_cannot_be_shown_is_found_before_a_model_loads(
    folder: Path, tmp_path: Path, kind: str
) -> None:
    made = {
        "cut": (folder / "2.png").read_bytes()[:900],
        "text": b"not a picture",
        "empty": b"",
        "thin": b"",
    }
    (tmp_path / "bad.png").write_bytes(made[kind])
    if kind == "thin":
        Image.new("RGB", (600000, 1)).save(tmp_path / "bad.png")
    (tmp_path / "good.png").write_bytes((folder / "0.png").read_bytes())
    path = write(tmp_path / "rows.jsonl", [row(["good.png"]), row(["good.png", "bad.png"])])
    with pytest.raises(UserError, match=r"1 of 2 rows.*\n  line 2: .*bad\.png: "):
        load_pairs(path, str(tmp_path))
    assert len(load_pairs(path, str(tmp_path), skip_bad_rows=True).rows) == 1


def test_the_merger_and_the_judge_name_the_same_chosen_answer() -> None:
    rows = read_lines(REPO / "dataset/sample/dpo.jsonl")
    assert rows
    for pair in rows:
        answer = judge(pair["chosen"], TASKS[pair["task"]], 1).answer
        assert group_labels(pair)["answer"] == pair["chosen_answer"] == answer


@pytest.mark.parametrize("given", [1, 2])
def test_a_chosen_answer_of_the_merger_is_taken(given: int) -> None:
    """Without a look at the text, which here has no answer."""
    labels = group_labels(row([]) | {"chosen": "no answer", "chosen_answer": given})
    assert labels["answer"] == given


@pytest.mark.parametrize(
    "given", [None, 0, 3, -1, True, 1.0, 2.0, "1", "2", "Image 2 is better", [2], {"answer": 2}]
)
def test_without_a_chosen_answer_it_is_read_from_the_text(
    folder: Path, tmp_path: Path, given: Any
) -> None:
    """Whatever else stands in its place, or under the name `answer` in rows of others."""
    pair = row(["0.png"], chosen="2", rejected="x")
    path = write(tmp_path / "rows.jsonl", [pair, pair | {"answer": given}])
    assert [loaded["answer"] for loaded in load_pairs(path, str(folder)).rows] == [2, 2]
    assert group_labels(pair | {"chosen_answer": given})["answer"] == 2
    assert group_labels({"chosen": "no answer", "chosen_answer": given})["answer"] == 0


def test_whether_one_model_wrote_both_texts() -> None:
    pair = row([])
    assert group_labels(pair)["same_model"] == 0
    assert group_labels(pair | {"rejected_model": "a"})["same_model"] == 1
    assert group_labels(pair | {"rejected_model": ""})["same_model"] == -1
    del pair["chosen_model"]
    assert group_labels(pair)["same_model"] == -1
