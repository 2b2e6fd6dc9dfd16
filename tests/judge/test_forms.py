"""The forms `json` and `answer`: what is of the form, and what its scores say of its winner."""

import json
from typing import Any

import pytest
from cot_reward.judge import answer_block, judge
from cot_reward.records import FORMS, Verdict
from cot_reward.tasks import TASKS
from helpers.texts import cot
from hypothesis import given
from hypothesis import strategies as st

IMAGES = TASKS["image_generation"]


def scored(*pairs: tuple[Any, Any], winner: Any = "Image 1", noun: str = "Image") -> dict[str, Any]:
    """An object with a dimension for each pair, two of them in a category."""
    dimensions = [
        {"name": f"d{n}", "reason": "so", "scores": {f"{noun} 1": a, f"{noun} 2": b}}
        for n, (a, b) in enumerate(pairs)
    ]
    return {
        "categories": [
            {"name": f"c{at}", "dimensions": dimensions[at : at + 2]}
            for at in range(0, len(dimensions), 2)
        ],
        "winner": winner,
    }


def found(text: Any, label: int = 1) -> Verdict:
    return judge(text if isinstance(text, str) else json.dumps(text), IMAGES, label, form="json")


@pytest.mark.parametrize(
    ("pairs", "winner", "coherence"),
    [
        ([(6, 4), (5, 5), (7, 3)], "Image 1", "coherent"),
        ([(6, 4), (5, 5), (2, 8)], "Image 2", "coherent"),
        ([(6, 4), (5, 5), (7, 3)], "Image 2", "contradicts"),
        ([(6, 4), (4, 6)], "Image 1", "tie"),
        ([(6.5, 3.5), (5, 5)], "Image 1", "coherent"),
        ([(0.1, 9.9)] * 3, "Image 2", "coherent"),
        ([(10, 0)], "Image 1", "coherent"),
        ([(6, 4), (6, 5)], "Image 1", "wrong_sum"),
        ([(11, -1)], "Image 1", "wrong_sum"),
        ([(6, "4")], "Image 1", "wrong_sum"),
        ([(6, None)], "Image 1", "wrong_sum"),
        ([(True, 9)], "Image 1", "wrong_sum"),
        ([], "Image 1", "no_totals"),
    ],
)
def test_the_sums_of_scores_support_the_winner(
    pairs: list[tuple[Any, Any]], winner: str, coherence: str
) -> None:
    answer = int(winner[-1])
    assert found(scored(*pairs, winner=winner), answer) == Verdict("correct", coherence, answer)
    assert found(scored(*pairs, winner=winner), 3 - answer).verdict == "incorrect"


def test_one_object_alone_or_in_a_fence() -> None:
    text = json.dumps(scored((6, 4)), indent=1)
    right = Verdict("correct", "coherent", 1)
    for whole in (text, f"\n {text} \n", f"```json\n{text}\n```", f"```\n{text}\n```"):
        assert found(whole) == right
    for other in (
        f"Here it is: {text}", f"{text} That is all.", f"{text}\n{text}", text[:-1], f"[{text}]",
        f"```json\n{text}\n```\nDone.", "", "null", '"Image 1"', cot(),
    ):  # fmt: skip
        assert found(other) == Verdict("unparsed", "", 0)


@pytest.mark.parametrize("winner", ["Image 3", "1", 1, None, "Video 1", ["Image 1"], "Image 1."])
def test_a_winner_is_named_exactly(winner: Any) -> None:
    assert found(scored((6, 4), winner=winner)) == Verdict("unparsed", "", 0)
    assert found(scored((6, 4), winner=" Image 1 is better ")).answer == 1


def test_what_could_be_read_in_two_ways_is_not_read() -> None:
    twice = '{"categories": [], "winner": "Image 1", "winner": "Image 2"}'
    assert found(twice).verdict == "unparsed"
    assert found('{"winner": "Image 1", "categories": NaN}').verdict == "unparsed"
    assert found('{"winner": "Image 1", "categories": 1' + "0" * 5000 + "}").verdict == "unparsed"
    assert found("[" * 100_000).verdict == "unparsed"
    assert found('{"a":' * 50_000).verdict == "unparsed"
    assert found(json.dumps(scored((6, 4)) | {"x": "y" * 10**6})).verdict == "unparsed"


def test_numbers_and_fences_of_any_size_are_judged_at_once() -> None:
    scores = '{"winner": "Image 1", "categories": [{"Image 1": 1e9999999, "Image 2": 1}]}'
    assert found(scores).verdict == "unparsed"
    assert found("```json" + "\n" * 100_000 + "x").verdict == "unparsed"


def test_no_scores_are_passed_over() -> None:
    outside = {"winner": "Image 1", "scores": {"Image 1": 1, "Image 2": 9}}
    assert found(outside).coherence == "contradicts"


def test_scores_stand_alone_or_anywhere_in_the_categories() -> None:
    nested = {"categories": {"a": {"Image 1": 6, "Image 2": 4}, "b": [[{"scores": {
        "Image 1": 7, "Image 2": 3}}]]}, "winner": "Image 1"}  # fmt: skip
    assert found(nested).coherence == "coherent"
    half = {"categories": [{"scores": {"Image 1": 6}}], "winner": "Image 1"}
    assert found(half).coherence == "wrong_sum"


@pytest.mark.parametrize("task", TASKS.values())
def test_every_task_has_its_own_nouns(task: Any) -> None:
    text = json.dumps(scored((6, 4), winner=f"{task.noun} 1", noun=task.noun))
    assert judge(text, task, 1, form="json") == Verdict("correct", "coherent", 1)
    other = TASKS["video_generation" if task.noun != "Video" else "image_generation"]
    assert judge(text, other, 1, form="json").verdict == "unparsed"
    assert judge(task.answers[1], task, 2, form="answer") == Verdict("correct", "no_totals", 2)


@pytest.mark.parametrize(
    "text", ["Image 1", "Image 1 is better.", "I say Image 1 is better", "image 1 is better", ""]
)
def test_a_bare_answer_is_exactly_an_answer_string(text: str) -> None:
    assert judge(text, IMAGES, 1, form="answer") == Verdict("unparsed", "", 0)
    assert judge(" Image 1 is better\n", IMAGES, 2, form="answer").verdict == "incorrect"


def test_no_form_takes_the_texts_of_another() -> None:
    texts = {"think": cot(), "json": json.dumps(scored((6, 4))), "answer": "Image 1 is better"}
    for asked in FORMS:
        for written, text in texts.items():
            verdict = judge(text, IMAGES, 1, form=asked).verdict
            assert verdict == ("correct" if asked == written else "unparsed")


def test_a_text_that_was_cut_is_of_no_form() -> None:
    for form in FORMS:
        assert judge("Image 1 is better", IMAGES, 1, "length", form).verdict == "truncated"


@given(st.text(), st.sampled_from(FORMS))
def test_no_text_raises(text: str, form: Any) -> None:
    judge(text, IMAGES, 1, form=form)
    answer_block(text)


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.sampled_from(["Image 1", "Image 2", "scores", "a"]), inner, max_size=3),
    max_leaves=12,
))  # fmt: skip
def test_no_object_raises(value: Any) -> None:
    whole = json.dumps({"winner": "Image 1", "categories": value})
    assert found(whole).verdict in ("correct", "unparsed")


def test_the_answer_of_an_object_is_its_winner() -> None:
    assert answer_block(json.dumps(scored((6, 4)))) == '"winner": "Image 1"'
    assert answer_block('{"winner": "a", "b": {"winner": "c"}}') is None
    assert answer_block("{}") is None


def test_the_example_in_the_prompt_is_of_the_form() -> None:
    for task in TASKS.values():
        example = task.templates["json"].partition("made-up scores:\n")[2].rpartition("\n\n")[0]
        if task.text_field == "question":
            example = task.templates["json"].partition("made-up scores:\n")[2].partition("\n\n")[0]
        assert judge(example, task, 2, form="json") == Verdict("correct", "coherent", 2)
        example = task.templates["think"].partition("made-up scores:\n")[2].partition("\n\n")[0]
        assert judge(example, task, 2) == Verdict("correct", "coherent", 2)
