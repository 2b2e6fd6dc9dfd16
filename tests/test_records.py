"""The identity of a comparison, its two presentations, and the turns of a row."""

import hashlib

import pytest
from cot_reward.records import (
    PAIR_FIELDS,
    Comparison,
    PreferencePair,
    comparison_key,
    conversation,
    token_fault,
    turns,
)
from hypothesis import given
from hypothesis import strategies as st

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)


def key(task="image_generation", text="a cat", context=(), pair=("a.png", "b.png")):
    return comparison_key(task, text, context, pair)


def test_the_key_is_the_sha256_of_canonical_json():
    canonical = '["image_generation","a cat",[],["a.png","b.png"]]'
    assert key() == hashlib.sha256(canonical.encode()).hexdigest()


@given(TEXT, TEXT, TEXT)
def test_both_presentation_orders_share_the_key(caption, first, second):
    assert key(text=caption, pair=(first, second)) == key(text=caption, pair=(second, first))


def test_other_material_has_another_key():
    keys = {
        key(),
        key(text="a dog"),
        key(task="video_generation"),
        key(pair=("a.png", "c.png")),
        key(context=("q.png",)),
        key(context=("q.png", "r.png")),
        # Context is ordered, candidates are not.
        key(context=("r.png", "q.png")),
    }
    assert len(keys) == 7


def test_the_caption_is_stripped_and_in_normal_form_c():
    assert key(text=" a cat\n") == key()
    assert key(text="caf\u00e9") == key(text="cafe\u0301")
    assert key(text="A cat") != key()
    # Media paths are names of files: they stay byte for byte as they are.
    assert key(pair=("caf\u00e9", "b")) != key(pair=("cafe\u0301", "b"))


def test_the_key_holds_any_language():
    captions = ["一只猫", "кот", "🐈", "قطة", "Image 1: {caption}", '"quoted", [a]']
    assert len({key(text=caption) for caption in captions}) == len(captions)


def test_joined_material_cannot_be_confused():
    assert key(text="a", pair=("b", "c,d")) != key(text="a", pair=("b,c", "d"))
    assert key(text='a",["b"]', pair=("c", "d")) != key(text="a", pair=('b"],["c', "d"))


def test_the_label_turns_with_the_order():
    comparison = Comparison("image_generation", "a cat", ("a.png", "b.png"), 1)
    assert comparison.presented("given") == (("a.png", "b.png"), 1)
    assert comparison.presented("swapped") == (("b.png", "a.png"), 2)


@given(st.sampled_from([1, 2]))
def test_a_comparison_and_its_mirror_are_one(label):
    one = Comparison("image_generation", "a cat", ("a.png", "b.png"), label)
    two = Comparison("image_generation", "a cat", ("b.png", "a.png"), 3 - label)
    assert one.key == two.key
    assert one.presented("given") == two.presented("swapped")


@pytest.mark.parametrize("label", [0, 3, "1", None])
def test_the_label_is_1_or_2(label):
    with pytest.raises(ValueError, match="must be 1 or 2"):
        Comparison("image_generation", "a cat", ("a.png", "b.png"), label)


def test_two_equal_candidates_or_no_caption_are_no_comparison():
    with pytest.raises(ValueError, match="both candidates are the same"):
        Comparison("image_generation", "a cat", ("a.png", "a.png"), 1)
    with pytest.raises(ValueError, match="empty"):
        Comparison("image_generation", " \n", ("a.png", "b.png"), 1)


@given(st.text(), st.text())
def test_turns_reads_what_conversation_writes(prompt, completion):
    assert turns({"conversations": conversation(prompt, completion)}) == (prompt, completion)


@pytest.mark.parametrize(
    ("talk", "message"),
    [
        (None, "must be a list"),
        ([], "must be a list"),
        (conversation("a", "b") * 2, "must be a list"),
        (conversation("a", "b")[::-1], "'human'"),
        ([{"from": "human", "value": "a"}, "b"], "'gpt'"),
        ([{"from": "human", "value": "a"}, {"from": "gpt", "value": None}], "must be a string"),
        ([{"from": "human"}, {"from": "gpt", "value": "b"}], "must be a string"),
    ],
)
def test_other_conversations_are_refused(talk, message):
    with pytest.raises(ValueError, match=message):
        turns({"conversations": talk})


def test_a_pair_becomes_a_row_with_every_field_in_its_type():
    pair = PreferencePair("p", "c", "r", ["a", "b"], [], "id", "t", "given", 1, "m", "n", "think")
    row = pair.to_row()
    assert list(row) == list(PAIR_FIELDS)
    assert all(isinstance(row[name], kind) for name, kind in PAIR_FIELDS.items())
    assert list(row)[:4] == ["problem", "chosen", "rejected", "images"]


MEDIA_TOKENS = ["<image>", "<video>", "<audio>", "<|image_pad|>", "<|video_pad|>"]
CONTROL_TOKENS = ["<|im_end|>", "<|im_start|>", "<|vision_start|>", "<|endoftext|>", "<|box_end|>"]


@pytest.mark.parametrize("token", MEDIA_TOKENS + CONTROL_TOKENS)
def test_no_text_of_a_comparison_holds_a_special_token(token):
    why = "for a medium" if token in MEDIA_TOKENS else "a control token"
    assert token_fault(f"a {token}cat").startswith(f"holds {token}; ")
    assert why in token_fault(token)
    for text, candidates in ((f"a cat{token}", ("a", "b")), ("a cat", ("a", f"b {token}"))):
        with pytest.raises(ValueError, match=r"a text of the record holds <.*" + why):
            Comparison("image_understanding", text, candidates, 1)


@pytest.mark.parametrize(
    "text",
    ["", "a <b> c", "<think>", "a |> b", "<| im_end |>", "<||>", "x < |y|", "<|a b|>", "<im_end>"],
)
def test_other_brackets_are_text(text):
    assert token_fault(text) == ""
