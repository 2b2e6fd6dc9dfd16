"""Scores by dimension: the prompt's own form, other layouts, and what is left out."""

import pytest
from cot_reward.judge import judge, read_dimensions
from cot_reward.tasks import TASKS
from hypothesis import given
from hypothesis import strategies as st

IMAGES = TASKS["image_generation"]


def read(reasoning, task=IMAGES):
    text = f"<think>{reasoning}</think><answer>{task.noun} 1 is better</answer>"
    return read_dimensions(text, task, "think")


@pytest.mark.parametrize("task", list(TASKS.values()), ids=TASKS)
@pytest.mark.parametrize("form", ["think", "json"])
def test_the_examples_of_all_prompts(task, form):
    template = task.templates[form]
    start, end = ("<think>\n1.", "is better</answer>") if form == "think" else ('{"cat', '2"}')
    text = template[template.index(start) : template.rindex(end) + len(end)]
    assert judge(text, task, 2, "", form).answer == 2
    scores, totals = read_dimensions(text, task, form)
    assert len(scores) == 3
    if form == "think":
        assert list(scores.values()) == [(6, 9), (8, 7), (7, 8)]
        assert totals == (21, 24)
    else:
        # The first category has two dimensions.
        assert list(scores.values()) == [(4, 6), (6, 4), (4, 6)]
        assert totals == (18, 22)


@pytest.mark.parametrize(
    "reasoning",
    [
        "1. Style:\nImage 1 (8/10) - fine;\nImage 2 (6/10) - dull\n2. Light:\n"
        "Image 1 (3/10)\nImage 2 (4/10)\nTotal score:\nImage 1: 8+3=11\nImage 2: 6+4=10",
        "**Style**: Image 1 (8/10); Image 2 (6/10)\n- **Light** (colour): Image 1: 3/10, "
        "Image 2: 4/10\nTotal: Image 1: 11, Image 2: 10",
        "Style: Image 1 (8/10) - it is good: so; Image 2 (6/10) - bad. Light: Image 1 (3/10) a; "
        "Image 2 (4/10) b.\nTotal: Image 1: 11, Image 2: 10",
        "Style: how it looks, in detail.\nImage 2 (6/10), Image 1 (8/10)\n\nLight: seen.\nImage 2 "
        "(4/10)\nImage 1 (3/10)\nTotal: Image 1: 11, Image 2: 10",
    ],
)
def test_layouts(reasoning):
    assert read(reasoning) == ({"Style": (8, 6), "Light": (3, 4)}, (11, 10))


def test_both_and_full_width_signs():
    assert read("风格：图像1（8/10）；图像2（6/10）\nLight: Both images (7/10)")[0] == {
        "风格": (8, 6),
        "Light": (7, 7),
    }


@pytest.mark.parametrize(
    "reasoning",
    [
        "Image 1 (8/10), Image 2 (6/10)",  # no name
        "Style: Image 1 (8/10)",  # one candidate
        "Style: Image 1 (8/10); Image 2 (6/10); Image 1 (9/10)",  # two scores of one
        "Style: Image 1 (8/10); Image 2 (6/10)\nStyle: Image 1 (2/10); Image 2 (3/10)",  # twice
        "Image 1 blurred: bad (3/10)\nImage 2 sharp: good (8/10)",  # about a candidate
    ],
)
def test_what_is_not_certain_is_left_out(reasoning):
    assert read(reasoning)[0] == {}


def test_a_json_score_that_is_no_number():
    text = '{"a": {"Image 1": "x", "Image 2": 3}, "winner": "Image 1"}'
    assert read_dimensions(text, IMAGES, "json") == ({}, None)
    assert read_dimensions("Image 1 is better", IMAGES, "answer") == ({}, None)


@given(
    st.dictionaries(
        st.from_regex(r"[A-Z][a-z]{2,9}( [a-z]{2,9})?", fullmatch=True).filter(
            lambda name: not name.startswith(("Image", "Both", "The"))
        ),
        st.tuples(st.integers(0, 10), st.integers(0, 10)),
        max_size=6,
    )
)
def test_what_is_written_is_read(scores):
    lines = [
        f"{n}. {name}: Image 1 ({a}/10) - so; Image 2 ({b}/10) - so"
        for n, (name, (a, b)) in enumerate(scores.items(), 1)
    ]
    assert read("\n".join(lines))[0] == scores


@pytest.mark.timeout(60)
@pytest.mark.parametrize("part", ["*", " ", ": ", "\n* ", ". a", "a: ", "(", "1. "])
def test_no_text_takes_long(part):
    # Quadratic time would end this test by its time limit.
    assert read(part * 200_000 + "Image 1 (8/10)")[0] == {}
