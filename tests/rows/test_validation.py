"""Rows that cannot be used: every program that reads them refuses them, with one sentence."""

import importlib
from pathlib import Path
from typing import Any

import pytest
from cot_reward.errors import UserError
from cot_reward.pairing.audit import audit
from cot_reward.records import conversation
from cot_reward.rows.checking import check_files
from cot_reward.rows.validation import RowError, check_row
from helpers.merging import RIGHT, WRONG, run
from helpers.pictures import picture
from helpers.rows import judged_row, read_lines, write_lines

PROMPT = "<image><image>Judge: [a cat]"


def pair(**changes: Any) -> dict[str, Any]:
    """A DPO row; a change to None takes the field away."""
    row = {"problem": PROMPT, "chosen": RIGHT, "rejected": WRONG, "images": ["a.png", "b.png"]}
    return {name: value for name, value in (row | changes).items() if value is not None}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("a.png", "b.png"):
        picture(tmp_path / "media" / name)
    return tmp_path / "media"


BAD_PAIRS = [
    (pair(problem="<image>One"), "1 <image> in the prompt, but 2 in 'images'; each medium needs"),
    (pair(problem="<image> <image>"), "the prompt is empty"),
    (pair(problem=PROMPT + "<|image_pad|>"), "the prompt holds <|image_pad|>; a trainer would"),
    (pair(problem=PROMPT + "<audio>"), "the prompt holds <audio>; a trainer would"),
    (pair(problem=PROMPT + "<|im_end|>"), "the prompt holds <|im_end|>; a model reads this as"),
    (pair(chosen="x <|endoftext|>"), "'chosen' holds <|endoftext|>; a model reads this as"),
    (pair(chosen="  "), "'chosen' is empty"),
    (pair(rejected="x <|video_pad|>"), "'rejected' holds <|video_pad|>; a trainer would"),
    (pair(chosen="x <video>"), "'chosen' holds <video>; a trainer would"),
    (pair(rejected=RIGHT), "'chosen' and 'rejected' are the same text"),
    (pair(problem="Which?", images=[]), "has no images"),
    (pair(images=["a.png", ""]), "a media path must be a string, not ''"),
    (pair(images="a.png"), "'images' must be of type list, not 'a.png'"),
    (pair(order=1), "'order' must be of type str, not 1"),
]
# Another project's pairs, or pairs of videos: the audit reads them, stage 3 cannot train on them.
NOT_FOR_STAGE_3 = [
    (pair(images=None, problem="Which?"), "has no 'images'"),
    (
        pair(problem="<video><video>Which?", images=[], videos=["a.mp4", "b.mp4"]),
        "has videos; stage 3 trains on images only",
    ),
]


@pytest.mark.parametrize(("row", "message"), BAD_PAIRS)
def test_a_bad_pair_is_refused_by_the_check_the_audit_and_the_trainer(
    tmp_path: Path, root: Path, row: dict[str, Any], message: str
) -> None:
    # Imported here: it loads torch, which nothing else of this file needs.
    load_pairs = importlib.import_module("cot_reward.dpo.pairs").load_pairs
    path = write_lines(tmp_path / "rows.jsonl", [pair(), row])
    (problem,) = check_files([path], root, workers=1).problems
    assert problem.where == f"{path}:2"
    assert problem.message.startswith(message)
    audited = audit(path)
    assert (audited.rows, audited.bad_rows) == (2, 1)
    assert audited.bad == [f"{path}:2: {problem.message}"]
    kept = load_pairs(str(path), str(root), skip_bad_rows=True)
    assert kept.problems == [f"{path}:2: {problem.message}"]
    with pytest.raises(UserError, match="1 of 2 rows cannot be used"):
        load_pairs(str(path), str(root))


@pytest.mark.parametrize(("row", "message"), NOT_FOR_STAGE_3)
def test_what_stage_3_cannot_train_on_is_audited_all_the_same(
    tmp_path: Path, root: Path, row: dict[str, Any], message: str
) -> None:
    load_pairs = importlib.import_module("cot_reward.dpo.pairs").load_pairs
    path = write_lines(tmp_path / "rows.jsonl", [pair(), row])
    (problem,) = check_files([path], root, workers=1).problems
    assert problem.message == message
    kept = load_pairs(str(path), str(root), skip_bad_rows=True)
    assert kept.problems == [f"{path}:2: {message}"]
    audited = audit(path)
    assert (audited.rows, audited.bad_rows) == (2, 0)


BAD_RESPONSES = [
    ({"images": ["a.png"]}, "the row names fewer than two media of one kind"),
    ({"images": ["a.png", "a.png"]}, "both media are the same: 'a.png'"),
    ({"label": 3}, "'label' must be 1 or 2, not 3"),
    ({"label": 0}, "'label' must be 1 or 2, not 0; if labels count from 0 here, add 1 to each"),
    ({"label": "1"}, "'label' must be of type int, not '1'"),
    ({"order": "upside down"}, "'order' must be given or swapped, not 'upside down'"),
    ({"task": "chess"}, "unknown task 'chess'"),
    ({"images": None}, "'images' must be of type list, not None"),
    ({"sample": True}, "'sample' must be of type int, not True"),
    ({"conversations": conversation("<image>One", RIGHT)}, "1 <image> in the prompt, but 2 in"),
    ({"conversations": conversation("<image><image>", RIGHT)}, "the prompt is empty"),
    ({"conversations": conversation(PROMPT + "<|image_pad|>", RIGHT)}, "the prompt holds <|ima"),
    ({"conversations": conversation(PROMPT + "<|vision_start|>", RIGHT)}, "the prompt holds <|vis"),
    ({"conversations": conversation(PROMPT, RIGHT)[::-1]}, "'conversations' must be a human turn"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_RESPONSES)
def test_a_bad_judged_row_is_refused_by_the_check_and_the_merger(
    tmp_path: Path, root: Path, changes: dict[str, Any], message: str
) -> None:
    row = judged_row(RIGHT) | changes
    run(tmp_path, [judged_row(RIGHT), row], [judged_row(WRONG)], "--max-bad-rows", 0.5)
    (bad,) = read_lines(tmp_path / "out/bad_rows.jsonl")
    path = write_lines(tmp_path / "rows.jsonl", [judged_row(RIGHT), row])
    (problem,) = check_files([path], root, workers=1).problems
    assert problem.message == bad["reason"]
    assert bad["reason"].startswith(message)


@pytest.mark.parametrize(
    "text", [" \n", "x <image>", "x <audio>", "x <|image_pad|>", "x <|im_end|>"]
)
def test_a_bad_completion_is_refused_by_the_check_and_left_out_by_the_merger(
    tmp_path: Path, root: Path, text: str
) -> None:
    kinds = ["--rejected-kinds", "incorrect", "unparsed"]
    rows = [judged_row(text, sample=1), judged_row(WRONG)]
    _, summary = run(tmp_path, [judged_row(RIGHT)], rows, *kinds)
    assert summary["incorrect_side"] == {"rows": 2, "used": 1, "empty_or_holds_placeholder": 1}
    (problem,) = check_files([write_lines(tmp_path / "x.jsonl", rows)], root, workers=1).problems
    assert "the completion" in problem.message


def test_good_rows_name_their_media() -> None:
    expected = {"images": ["a.png", "b.png"], "videos": []}
    assert check_row(pair()) == expected
    assert check_row(judged_row(RIGHT)) == expected
    text_only = {"conversations": conversation("Which?", "This.")}
    assert check_row(text_only) == {"images": [], "videos": []}


@pytest.mark.parametrize("row", [None, 7, [], "x", {}, {"prompt": "x"}])
def test_what_is_no_training_row_is_refused(row: Any) -> None:
    with pytest.raises(RowError, match=r"must be an object|needs 'conversations'"):
        check_row(row)


def test_another_projects_fields_by_our_names_do_not_matter_in_a_pair() -> None:
    assert check_row(pair(answer="Image 1", label="left", source=None, score=0.5))
