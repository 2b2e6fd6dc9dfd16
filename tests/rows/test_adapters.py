"""Adapters: raw rows of published data -> comparisons, or an error that costs only the row."""

import pytest
from cot_reward.errors import UserError
from cot_reward.inference.inputs import read_comparisons
from cot_reward.inference.ledger import Ledger
from cot_reward.records import Comparison
from cot_reward.rows.adapters import adapter_for, upstream
from cot_reward.tasks.prompts import shown_media
from helpers.environments import REPO
from helpers.rows import raw_row


def test_an_upstream_row():
    found = upstream.adapt(raw_row("a cat", ["1.png", "x/2.png"], label=2), "evalmuse/images")
    assert found == Comparison(
        "image_generation",
        "a cat",
        ("evalmuse/images/1.png", "evalmuse/images/x/2.png"),
        2,
    )


def test_the_same_images_have_the_same_key_below_any_image_root():
    far = upstream.adapt(raw_row("a cat", ["1.png", "./2.png"]), "a/b")
    near = upstream.adapt(raw_row("a cat", ["b/1.png", "b//2.png"]), "a")
    none = upstream.adapt(raw_row("a cat", ["a/b/1.png", "a/c/../b/2.png"]), "")
    assert far.key == near.key == none.key


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../1.png", "..", "x/../../1.png", "//1.png", "./../1.png"]
)
@pytest.mark.parametrize("prefix", ["", "images", "a/b"])
def test_a_path_out_of_the_image_root_is_refused(path, prefix):
    with pytest.raises(ValueError, match="leads out of the image root"):
        upstream.adapt(raw_row("a cat", ["1.png", path]), prefix)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": ["1.png"]}, "two paths"),
        ({"images": ["1.png", "2.png", "3.png"]}, "two paths"),
        ({"images": "1.png"}, "two paths"),
        ({"images": None}, "two paths"),
        ({"images": ["1.png", None]}, "must be a string"),
        ({"images": ["1.png", ""]}, "must be a string"),
        ({"images": ["1.png", "./1.png"]}, "both candidates are the same"),
        ({"prompt": None}, "caption"),
        ({"prompt": "  "}, "empty"),
        ({"prompt": "a cat <image>"}, "holds <image>; a trainer"),
        ({"prompt": "a cat<|endoftext|>"}, r"holds <\|endoftext\|>; a model reads"),
        ({"conversations": []}, "one human and one gpt turn"),
    ],
)
def test_a_bad_row_says_what_is_wrong(change, message):
    with pytest.raises(ValueError, match=message):
        upstream.adapt(raw_row("a cat", ["1.png", "2.png"]) | change, "")


@pytest.mark.parametrize("preference", ["", "Image 1", "Image 3 is better than Image 2.", "a tie"])
def test_a_label_is_never_guessed(preference):
    row = raw_row("a cat", ["1.png", "2.png"])
    row["conversations"][1]["value"] = preference
    with pytest.raises(ValueError, match="the label"):
        upstream.adapt(row, "")


def test_the_adapter_is_found_from_the_row_or_by_name():
    row = raw_row("a cat", ["1.png", "2.png"])
    for name, shown in ((None, row), ("upstream", {})):
        assert adapter_for(shown, name)(row, "x") == upstream.adapt(row, "x")
    with pytest.raises(UserError, match="no adapter knows rows with the keys \\['x'\\]"):
        adapter_for({"x": 1}, None)
    with pytest.raises(UserError, match="unknown --adapter 'hpd'"):
        adapter_for({}, "hpd")


def test_the_samples_are_read():
    for name, tasks in {
        "raw.json": ["image_generation"] * 2,
        "comparisons.jsonl": ["image_generation", "image_understanding"],
    }.items():
        with Ledger(None) as ledger:
            read_comparisons(ledger, [REPO / "dataset/sample" / name], REPO / "dataset/sample")
            found = list(ledger)
            assert [listed.comparison.task for listed in found] == tasks
            assert ledger.bad_count == ledger.duplicate_count == 0
        for listed in found:
            for path in shown_media(listed.comparison, "given"):
                assert (REPO / "dataset/sample" / path).is_file()
