"""The regular expressions that a server forces: exactly what the judge reads."""

import json
import re
from itertools import product

import pytest
from cot_reward.judge import judge
from cot_reward.judge.grammar import JSON_MEMBERS, grammar
from cot_reward.records import FORMS, Form
from cot_reward.tasks import TASKS
from helpers.texts import cot
from hypothesis import example, given, settings
from hypothesis import strategies as st

IMAGES = TASKS["image_generation"]
TAGS = ["<think>", "</think>", "<answer>", "</answer>"]
# Parts of tags, what a tag may be confused with, and all that `strip` takes off.
PIECES = [
    *TAGS, "<", ">", "/", "</", "<t", "<thin", "<think", "</think", "<answe", "</answer", "think>",
    "k>", "answer>", "<<", "a", "é", "\U0001f600", "\x00", "\u200b", "Image 1 is better",
    "Image 2 is better", "Video 1 is better", "\n", *map(chr, filter(lambda n: chr(n).isspace(),
    range(0x3001))),
]  # fmt: skip
PART = st.lists(st.sampled_from(PIECES), max_size=6).map("".join)
# A text of the form with anything in its places, and any text.
THINK = st.one_of(
    st.tuples(
        st.sampled_from(["<think>", "\n <think>"]), PART,
        st.sampled_from(["</think><answer>", "</think>\u3000\n<answer>"]), PART,
        st.sampled_from(["Image 1 is better", " Image 2 is better\n"]), PART,
        st.sampled_from(["</answer>", "</answer>\n"]), PART,
    ).map("".join),
    st.builds("<think>{}</think>\n<answer>Image 2 is better</answer>".format, PART),
    PART,
)  # fmt: skip


def read(text: str, form: Form) -> bool:
    return judge(text, IMAGES, 1, form=form).answer > 0


@given(THINK)
@example("<think></think><answer>Image 1 is better</answer>")
@example("<think>a < b, <thin <</think> <answer>Image 1 is better</answer>\n")
@example("<think><think</think><answer>Image 1 is better</answer>")
@example("<think><</</think></think><answer>Image 1 is better</answer>")
def test_a_chain_of_thought_is_matched_when_the_judge_reads_it(text: str) -> None:
    assert bool(re.fullmatch(grammar("think", IMAGES), text)) == read(text, "think")


@given(THINK)
def test_behind_an_opened_block_the_rest_is_matched(text: str) -> None:
    rest = text.lstrip().removeprefix("<think>")
    matched = re.fullmatch(grammar("think", IMAGES, opened=True), rest)
    assert bool(matched) == read(f"<think>\n{rest}", "think")


@given(PART)
@example(" Image 1 is better\n")
def test_a_bare_answer_is_matched_when_the_judge_reads_it(text: str) -> None:
    assert bool(re.fullmatch(grammar("answer", IMAGES), text)) == read(text, "answer")


JSON_TEXT = """{"categories": [
{"name": "Style", "dimensions": [
{"name": "colour", "reason": "red", "scores": {"Image 1": 3, "Image 2": 7}},
{"name": "", "reason": "x", "scores": {"Image 1": 5.5, "Image 2": 4.5}}]}],
"winner": "Image 2"}"""
JSON_PIECES = [
    *'"\\{}[],:.-0159e \n\x01\t\u2028\xe9', '\\"', "\\u00e9", "\\ud800", "\\u12", "\\\\", "NaN",
    '"winner"', '"Image 1"', '"winner": "Image 1",', '"name": "a", ', "```", "```json\n", "true",
]  # fmt: skip


@given(st.lists(st.tuples(
    st.integers(0, len(JSON_TEXT)), st.integers(0, 2), st.sampled_from(JSON_PIECES)
), max_size=4))  # fmt: skip
@example([])
@example([(0, 0, "```json\n"), (len(JSON_TEXT) + 8, 0, "\n```")])
def test_all_json_of_the_grammar_is_read(edits: list[tuple[int, int, str]]) -> None:
    text = JSON_TEXT
    for at, removed, piece in edits:
        text = text[:at] + piece + text[at + removed :]
    if re.fullmatch(grammar("json", IMAGES), text):
        assert read(text, "json")
    elif not edits:
        raise AssertionError("the text itself is not matched")


@settings(max_examples=30)
@given(st.from_regex(grammar("think", IMAGES), fullmatch=True))
def test_all_chains_of_thought_of_the_grammar_are_read(text: str) -> None:
    assert read(text, "think")


@pytest.mark.parametrize("indent", [None, 0, 2])
def test_json_of_the_prompts_form_is_matched(indent: int | None) -> None:
    scores = [{"Image 1": 3, "Image 2": 7.5}, {"Image 1": 0, "Image 2": 10}]
    dimensions = [{"name": 'é "x"', "reason": "a\\ \n\t\u2028", "scores": each} for each in scores]
    category = {"name": "c", "dimensions": dimensions}
    whole = {"categories": [category, category], "winner": "Image 2"}
    for ascii_only in (True, False):
        text = json.dumps(whole, indent=indent, ensure_ascii=ascii_only)
        for form in (text, f"\n{text} ", f"```json\n{text}\n```", f"```\n{text}\n```\n"):
            assert re.fullmatch(grammar("json", IMAGES), form)
    # A control character, a constant, no winner, and a name twice.
    changes = [('"c"', '"\x01"'), ("7.5", "NaN"), ('"winner"', '"categories"')]
    wrong = [text.replace(*change) for change in changes]
    wrong.append(text.replace('"winner": "Image 2"', '"winner": "Both"'))
    assert text not in wrong
    assert not any(re.fullmatch(grammar("json", IMAGES), each) for each in wrong)


def test_every_task_has_its_own_answers() -> None:
    nouns = {task.noun for task in TASKS.values()}
    assert len(nouns) == 3
    for task, noun, answer in product(TASKS.values(), sorted(nouns), (1, 2)):
        one = ((9,), (1,)) if answer == 1 else ((1,), (9,))
        text = cot(*one, answer).replace("Image", noun)
        assert bool(re.fullmatch(grammar("think", task), text)) == (noun == task.noun)
        bare = f"{noun} {answer} is better"
        assert bool(re.fullmatch(grammar("answer", task), bare)) == (noun == task.noun)


def test_the_projects_own_prompts_show_what_is_forced() -> None:
    for task in TASKS.values():
        template = task.templates["json"]
        assert all(f'"{name}"' in template for name in JSON_MEMBERS)
        shown = template[template.index('{"categories"') : template.index('"}\n') + 2]
        # The braces of the example are doubled for no one: it is JSON as it stands.
        assert re.fullmatch(grammar("json", task), shown)


def test_no_engine_needs_more_than_classes_groups_and_repetitions() -> None:
    """Look-around, anchors, lazy repetitions and named classes: some engine lacks each of them."""
    for form, task, opened in product(FORMS, TASKS.values(), (False, True)):
        assert not re.search(r"\(\?[^:]|\\[bBdDwWsSAZ]|[$]|[*+?}][?+]", grammar(form, task, opened))
