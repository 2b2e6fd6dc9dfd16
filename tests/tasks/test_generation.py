"""Generation tasks: the caption is found again in a filled prompt."""

import pytest
from cot_reward.tasks import TASKS
from cot_reward.tasks.generation import caption_in
from cot_reward.tasks.prompts import fill
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("prompt", "caption"),
    [
        ("Judge. Text Caption: [a cat]", "a cat"),
        ("Judge.\nText Caption: a cat\n", "a cat"),
        ("Text Caption: [a [small] cat]", "a [small] cat"),
        ("Text Caption: [a] and [b]", "a] and [b"),
        ("Text Caption: example\nText Caption: [ a cat ]", "a cat"),
        ("Text Caption: [a\ncat]", "a\ncat"),
        ("Text Caption: [a cat", "[a cat"),
    ],
)
def test_the_caption_follows_the_last_marker(prompt, caption):
    assert caption_in(prompt) == caption


@pytest.mark.parametrize("prompt", ["", "a cat", "Text Caption:", "Text Caption: []", "caption: x"])
def test_no_marker_or_no_text_is_an_error(prompt):
    with pytest.raises(ValueError, match="no caption"):
        caption_in(prompt)


@given(st.text().map(str.strip).filter(bool).filter(lambda text: "Text Caption:" not in text))
def test_the_caption_comes_back_out_of_the_own_template(caption):
    task = TASKS["image_generation"]
    assert caption_in(fill(task.template, {"caption": caption})) == caption
