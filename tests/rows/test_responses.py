"""The merger's input: forms of rows, bad rows, held-out files."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cot_reward.errors import UserError
from cot_reward.records import comparison_key, conversation
from helpers.merging import RIGHT, WRONG, published, run
from helpers.pictures import picture
from helpers.rows import judged_row, raw_row, read_lines, write_lines, write_rows
from helpers.texts import cot


def partner(text, **other):
    """A judged row to the prompt of `published`: texts to other prompts make no pair."""
    row = judged_row(text, **other)
    return row | {"conversations": published(text, "conversations")["conversations"]}


# --- forms of rows --------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["conversations", "problem"])
@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".parquet"])
def test_published_rows_are_read_and_get_their_key(tmp_path, form, suffix):
    """Their labels follow from the file that they are in; a row of ours may be their partner."""
    data = tmp_path / "images"
    data.mkdir()
    rows = [
        published(RIGHT, form),
        published(cot((6, 7), (8, 7), 1), form, "a dog"),
        published(WRONG, form, "no partner"),
        published("Image 1", form, "a cat"),
    ]
    path = tmp_path / f"published{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        write_rows(path, rows)
    wrong = partner(WRONG, images=("images/a.png", "images/b.png"))
    flags = ["--correct", path, "--image-root", data]
    pairs, summary = run(tmp_path, [], [wrong], *flags)
    (pair,) = pairs
    assert (pair["id"], pair["images"]) == (wrong["id"], ["images/a.png", "images/b.png"])
    assert pair["problem"] == "<image><image>Judge them. Text Caption: [a cat]"
    assert (pair["chosen_model"], pair["rejected_model"]) == ("", "model-a")
    assert summary["correct_side"] == {
        "rows": 4, "used": 1, "chosen_contradicts": 1, "judged_unparsed": 1, "no_partner": 1
    }  # fmt: skip


@pytest.mark.parametrize(
    "odd",
    [
        {"videos": None, "source": None, "label": None, "id": None},
        {"id": 17, "videos": []},
        {"id": "f" * 64, "videos": None},
        {"images": ["./a.png", "x/../b.png"]},
        {"extra": {"deep": [1, None]}},
        {"problem": "Judge them. Text Caption: [a cat]"},
    ],
)
def test_what_published_rows_have_beside_is_no_matter(tmp_path, odd):
    rows = [published(RIGHT, "problem") | {"conversations": None} | odd]
    pairs, _ = run(tmp_path, rows, [partner(WRONG)])
    assert (pairs[0]["id"], pairs[0]["images"]) == (judged_row(WRONG)["id"], ["a.png", "b.png"])
    assert pairs[0]["problem"] == "<image><image>Judge them. Text Caption: [a cat]"


def test_fields_of_anothers_that_have_our_names_count_as_absent(tmp_path):
    odd = {"source": ["x"], "sample": "3", "order": 0, "model": {"a": 1}, "task": "text-to-image"}
    rows = [published(RIGHT, "problem") | odd | {"label": 1.0}]
    (pair,), _ = run(tmp_path, rows, [partner(WRONG, order="swapped")])
    # What it does not say of itself, its partner may know.
    assert pair["order"] == "swapped"
    assert run(tmp_path, rows, [partner(WRONG)])[1]["by_source"] == {"made": 1}
    assert len(run(tmp_path, [rows[0] | {"label": float("nan")}], [partner(WRONG)])[0]) == 1
    with pytest.raises(UserError, match="'label' must be of type int"):
        run(tmp_path, [rows[0] | {"label": "one"}], [partner(WRONG)])


def test_a_row_of_ours_that_lacks_fields_keeps_its_key(tmp_path):
    """Also where raw files have another image root, and where the template goes on."""
    (tmp_path / "x").mkdir()
    row = judged_row(RIGHT)
    bare = {name: row[name] for name in ("id", "images", "conversations")}
    for more in ({}, {"label": 1}):
        pairs, _ = run(tmp_path, [bare | more], [judged_row(WRONG)], "--image-root", tmp_path / "x")
        assert (pairs[0]["id"], pairs[0]["images"]) == (row["id"], ["a.png", "b.png"])


def test_spellings_of_a_path_are_one_path(tmp_path):
    wrong = judged_row(WRONG) | {"images": ["./a.png", "x/../b.png"]}
    pairs, _ = run(tmp_path, [judged_row(RIGHT)], [wrong])
    assert pairs[0]["images"] == ["a.png", "b.png"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (published(RIGHT, "problem") | {"images": []}, "names no two media"),
        (published(RIGHT, "problem") | {"images": ["a.png"]}, "names no two media"),
        (published(RIGHT, "problem") | {"images": ["a.png", "a.png"]}, "both candidates are the s"),
        (published(RIGHT, "problem") | {"images": ["a.png", "../../b.png"]}, "leads out"),
        (published(RIGHT, "problem") | {"problem": "<image><image>No caption"}, "no caption"),
        (published(RIGHT, "problem") | {"problem": "<image>Text Caption: x"}, "1 <image> in the p"),
        (published(RIGHT, "problem") | {"task": "image_understanding"}, "need the key"),
        ({"prompt": "x", "images": ["a.png", "b.png"]}, "no prompt and completion"),
        (judged_row(RIGHT) | {"id": "17"}, "no caption"),
        (judged_row(RIGHT) | {"images": ["a.png", "/b.png"]}, "leads out"),
        (judged_row(RIGHT) | {"images": ["a.png", "x/../../b.png"]}, "leads out"),
        (judged_row(RIGHT) | {"order": "upside down"}, "'order' must be"),
        (judged_row(RIGHT) | {"videos": ["a.mp4"]}, "fewer than two media of one kind"),
        (
            judged_row(RIGHT)
            | {"conversations": conversation("<image><image><|image_pad|>", RIGHT)},
            "look for a medium",
        ),
        (judged_row(RIGHT) | {"images": ["a.png", ""]}, "a media path must be a string"),
        (
            judged_row(RIGHT) | {"conversations": conversation("<image> \n<image>", RIGHT)},
            "the prompt is empty",
        ),
        (judged_row(RIGHT) | {"sample": 2**70}, "'sample' must be of type int"),
        ({}, "no prompt and completion"),
        (judged_row(RIGHT) | {"images": ["a.png", "."]}, "names no file"),
        (judged_row(RIGHT) | {"images": ["a.png", "b\0.png"]}, "names no file"),
        (judged_row(RIGHT) | {"images": [json.loads("[" * 900 + "]" * 900), "b.png"]}, ""),
    ],
)  # fmt: skip
def test_a_row_that_does_not_tell_what_it_is_about_is_bad(tmp_path, row, message):
    flags = ["--max-bad-rows", 0.5]
    pairs, _ = run(tmp_path, [judged_row(RIGHT), row], [judged_row(WRONG)], *flags)
    assert len(pairs) == 1
    (bad,) = read_lines(tmp_path / "out/bad_rows.jsonl")
    assert (bad["file"], bad["line"]) == (str(tmp_path / "correct.jsonl"), 2)
    assert message in bad["reason"]


def test_a_torn_line_and_no_json_are_bad_rows_with_their_lines(tmp_path):
    path = tmp_path / "torn.jsonl"
    good = json.dumps(judged_row(RIGHT))
    path.write_text(f"\n{good}\n[1]\nnot json\n\n{good[:200]}")
    pairs, summary = run(
        tmp_path, [], [judged_row(WRONG)], "--correct", path, "--max-bad-rows", 0.9
    )
    assert len(pairs) == 1
    assert [row["line"] for row in read_lines(tmp_path / "out/bad_rows.jsonl")] == [3, 4, 6]
    assert summary["correct_side"] == {"rows": 4, "bad": 3, "used": 1}


def test_texts_that_a_trainer_would_refuse_are_left_out(tmp_path):
    rejected = [judged_row(WRONG.replace("so", "<image>"), sample=1), judged_row(WRONG)]
    _, summary = run(tmp_path, [judged_row(RIGHT)], rejected)
    assert summary["incorrect_side"] == {"rows": 2, "used": 1, "empty_or_holds_placeholder": 1}


# --- bad rows -------------------------------------------------------------------------------------


BAD = [
    ({"images": []}, "fewer than two media"),
    ({"images": ["a.png"], "videos": ["b.mp4"]}, "fewer than two media"),
    ({"images": [{"bytes": "x"}, "b.png"]}, "a media path must be a string"),
    ({"images": None}, "'images' must be of type list"),
    ({"id": None}, "no caption"),
    ({"label": 0}, "'label' must be 1 or 2"),
    ({"label": "1"}, "'label' must be of type int"),
    ({"task": "chess"}, "unknown task 'chess'"),
    ({"conversations": []}, "one human and one gpt turn"),
    ({"conversations": [{"from": "human", "value": "\ud800"}] * 2}, "not valid Unicode"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=range(len(BAD)))
def test_a_bad_row_is_counted_with_its_file_and_line(tmp_path, change, message):
    rows = [judged_row(RIGHT), judged_row(RIGHT, sample=1) | change]
    flags = "--max-bad-rows", 0.5
    pairs, summary = run(tmp_path, rows, [judged_row(WRONG)], *flags)
    assert len(pairs) == 1
    (bad,) = summary["bad_rows"]
    assert bad.startswith(f"{tmp_path / 'correct.jsonl'}:2: ")
    assert message in bad
    assert summary["correct_side"] == {"rows": 2, "bad": 1, "used": 1}


def test_more_than_one_percent_of_bad_rows_is_an_error(tmp_path):
    rows = [judged_row(RIGHT, sample=n) for n in range(97)]
    bad = judged_row(RIGHT, images=())
    pairs, _ = run(tmp_path, [*rows, bad], [judged_row(WRONG)] * 2)
    assert len(pairs) == 1
    with pytest.raises(UserError, match=r"2 of 100 rows are bad.*\n.*correct\.jsonl:98: "):
        run(tmp_path, [*rows, bad, bad], [judged_row(WRONG)])


# --- held-out files -------------------------------------------------------------------------------


HELD_OUT = {
    "judged rows": judged_row(RIGHT, images=("b.png", "a.png"), order="swapped"),
    "keys": {"id": judged_row(RIGHT)["id"]},
    "raw data": raw_row(" a cat ", ["./b.png", "a.png"]),
    "raw data with ids of its own": raw_row("a cat", ["a.png", "b.png"]) | {"id": "17"},
    "raw data with digests of its own": raw_row("a cat", ["a.png", "b.png"]) | {"id": "0" * 64},
    "DPO rows whose template goes on": {
        "id": judged_row(RIGHT)["id"], "problem": "Judge. Text Caption: [a cat]\nBe brief.",
        "chosen": RIGHT, "rejected": WRONG, "images": ["a.png", "b.png"],
    },
    "comparisons": {
        "task": "image_generation", "text": "a cat", "candidates": ["b.png", "a.png"], "label": 1
    },
    "comparisons without a label": {
        "task": "image_generation", "text": "a cat", "candidates": ["b.png", "a.png"]
    },
    "comparisons with another label": {
        "task": "image_generation", "text": "a cat", "candidates": ["b.png", "a.png"], "label": 0.5
    },
    "comparisons without a task": {"text": "a cat", "candidates": ["a.png", "b.png"], "task": None},
    "raw data with another label": raw_row("a cat", ["a.png", "b.png"]) | {"conversations": []},
    "responses": {
        "problem": "Judge. Text Caption: [a cat]", "solution": "x", "images": ["b.png", "a.png"]
    },
    "pairs for TRL": {
        "prompt": [{"role": "user", "content": "Judge. Text Caption: a cat"}],
        "chosen": [], "rejected": [], "images": ["b.png", "a.png"],
    },
    "pairs for LLaMA-Factory": {
        "conversations": [{"from": "human", "value": "Judge. Text Caption: a cat"}],
        "chosen": {}, "rejected": {}, "images": ["b.png", "a.png"],
    },
}  # fmt: skip


@pytest.mark.parametrize("form", HELD_OUT)
def test_excluded_comparisons_never_pass_in_either_order(tmp_path, form):
    right, wrong = [], []
    for images, order, label in (
        (("a.png", "b.png"), "given", 1),
        (("b.png", "a.png"), "swapped", 2),
    ):
        for caption in ("a cat", "a dog"):
            about = {"caption": caption, "images": images, "order": order}
            right.append(judged_row(RIGHT if label == 1 else WRONG, label, **about))
            wrong.append(judged_row(WRONG if label == 1 else RIGHT, label, **about))
    held_out = HELD_OUT[form]
    # A comparison has many rows there.
    path = write_lines(tmp_path / "held_out.jsonl", [held_out, held_out])
    flags = ["--exclude", path, "--pairs-per-comparison", 2]
    pairs, summary = run(tmp_path, right, wrong, *flags)
    dog = judged_row(RIGHT, caption="a dog")["id"]
    assert {(pair["id"], pair["order"]) for pair in pairs} == {(dog, "given"), (dog, "swapped")}
    assert summary["correct_side"]["excluded"] == summary["incorrect_side"]["excluded"] == 2
    assert summary["excluded_comparisons"] == {str(path): 1}


def test_a_held_out_file_that_nothing_is_of_is_warned_of(tmp_path, capsys):
    """Its paths are relative to something else: what it names would pass."""
    (tmp_path / "x").mkdir()
    path = write_lines(tmp_path / "held_out.jsonl", [raw_row("a cat", ["a.png", "b.png"])])
    about = {"images": ("x/a.png", "x/b.png")}
    rows = [judged_row(RIGHT, **about)], [judged_row(WRONG, **about)]
    assert len(run(tmp_path, *rows, "--exclude", path)[0]) == 1
    assert "say with --image-root" in capsys.readouterr().err
    # Where the images are, it may be another data set.
    picture(tmp_path / "a.png")
    run(tmp_path, *rows, "--exclude", path)
    assert "see that it is other data" in capsys.readouterr().err
    with pytest.raises(UserError, match="'excluded': 1"):
        run(tmp_path, *rows, "--exclude", path, "--image-root", tmp_path / "x")


@pytest.mark.parametrize(
    ("before", "there", "warned"),
    [
        ([{"id": "0" * 64}], [], True),
        ([{"id": "0" * 64}] * 99, ["a.png"], False),
        ([raw_row("a cat", ["gone.png", "lost.png"])], [], True),
        ([raw_row("a cat", ["gone.png", "lost.png"])] * 99, ["a.png"], False),
        ([raw_row("a cat", ["gone.png", "lost.png"])] * 100, ["a.png"], True),
    ],
)
def test_the_first_rows_tell_whether_images_are_there(tmp_path, capsys, before, there, warned):
    """Not the first one alone: a key needs no image, and an image may be gone."""
    for name in there:
        picture(tmp_path / name)
    # Rows of others may have a digest of their own.
    rows = [*before, raw_row("a cat", ["a.png", "b.png"]) | {"id": "1" * 64}]
    path = write_lines(tmp_path / "held_out.jsonl", rows)
    about = {"images": ("x/a.png", "x/b.png")}
    run(tmp_path, [judged_row(RIGHT, **about)], [judged_row(WRONG, **about)], "--exclude", path)
    assert ("say with --image-root" in capsys.readouterr().err) == warned


@pytest.mark.parametrize("task", ["image_understanding", None])
def test_answers_about_an_image_are_held_out_without_a_label(tmp_path, capsys, task):
    key = comparison_key("image_understanding", "what?", ("a.png",), ("Blue.", "Green."))
    about = {"id": key, "task": "image_understanding", "images": ["a.png"]}
    right, wrong = (
        {**row, **about, "conversations": conversation("<image>Judge: what? Blue. Green.", text)}
        for row, text in ((judged_row(RIGHT), cot(noun="Answer")),
                          (judged_row(WRONG), cot((6, 7), (8, 7), 2, noun="Answer")))
    )  # fmt: skip
    rows = [right, judged_row(RIGHT)], [wrong, judged_row(WRONG)]
    assert len(run(tmp_path, *rows, "--no-balance-positions")[0]) == 2
    row = {"text": "what?", "candidates": ["Green.", "Blue."], "context": ["a.png"], "task": task}
    path = write_lines(tmp_path / "held_out.jsonl", [row])
    pairs, summary = run(tmp_path, *rows, "--exclude", path)
    assert [pair["task"] for pair in pairs] == ["image_generation"]
    assert summary["excluded_comparisons"] == {str(path): 1}
    # Where the image is, it may be another data set.
    write_lines(path, [row | {"text": "why?"}])
    run(tmp_path, *rows, "--exclude", path)
    assert "say with --image-root" in capsys.readouterr().err
    picture(tmp_path / "a.png")
    run(tmp_path, *rows, "--exclude", path)
    assert "see that it is other data" in capsys.readouterr().err


@pytest.mark.parametrize("empty", ["", "\n \n", "[]"])
def test_an_empty_held_out_file_holds_nothing_out(tmp_path, capsys, empty):
    """As an eval.jsonl may be that the merger wrote."""
    none, path = tmp_path / "none.jsonl", tmp_path / "held_out.jsonl"
    none.write_text(empty)
    rows = [judged_row(RIGHT), judged_row(RIGHT, caption="a dog")], [
        judged_row(WRONG), judged_row(WRONG, caption="a dog")
    ]  # fmt: skip
    write_lines(path, [judged_row(RIGHT)])
    pairs, summary = run(tmp_path, *rows, "--exclude", none, path)
    assert [pair["id"] for pair in pairs] == [judged_row(RIGHT, caption="a dog")["id"]]
    assert summary["excluded_comparisons"] == {str(none): 0, str(path): 1}
    # Its writer may have been stopped.
    assert f"--exclude {none}: none of its comparisons" in capsys.readouterr().err


@pytest.mark.parametrize(
    "row",
    [
        {"text": "a", "candidates": ["a.png"]},
        {"text": "a", "candidates": ["a.png", "b.png"], "task": "chess"},
        {"text": "a", "candidates": ["Blue.", "Green."], "task": "image_understanding"},
        {"id": "0" * 64, "image_1": "a.png", "image_2": "b.png", "prompt": "which?"},
        {"id": "17", "images": ["a.png", "b.png"]},
        {"prompt": [{"role": "assistant", "content": "x"}], "images": ["a.png", "b.png"]},
        {"problem": "no caption", "images": ["a.png", "b.png"]},
        {},
    ],
)
def test_a_held_out_row_that_names_no_comparison_is_an_error(tmp_path, row):
    path = write_lines(tmp_path / "held_out.jsonl", [row])
    with pytest.raises(UserError, match=r"held_out\.jsonl:1: no key as 'id', and none follows"):
        run(tmp_path, [judged_row(RIGHT)], [judged_row(WRONG)], "--exclude", path)


def test_a_held_out_file_that_cannot_be_read_whole_is_an_error(tmp_path):
    path = tmp_path / "held_out.jsonl"
    path.write_text(json.dumps(raw_row("a", ["a.png", "b.png"])) + "\n{broken\n")
    with pytest.raises(UserError, match=r"held_out\.jsonl:2: .*needs every row"):
        run(tmp_path, [judged_row(RIGHT)], [judged_row(WRONG)], "--exclude", path)
