"""Column maps: what they read, and which of them say nothing."""

import pytest
from cot_reward.preparing.mapping import ColumnMap, column
from cot_reward.rows.labels import FileLabels, TieError, UnknownLabelError, parse_meanings

ROW = {
    "prompt": "a cat", "response": ["x", "y"], "a.b": 1, "a": {"b": 2, "c": {"d": 3}},
    "images": [{"path": "1.png"}, {"path": "2.png"}], "0.jpg": b"", "pref": "left", "none": None,
    "s1": 0.7, "s2": "0.2", "json": '[{"img": "1.png"}, "[2, 3]"]', "odd": "[x",
}  # fmt: skip
PAIR = ["text=prompt", "first=images.0.path", "second=images.1.path"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("prompt", "a cat"), ("response.0", "x"), ("response.-1", "y"), ("a.b", 1), ("a.c.d", 3),
        ("images.1.path", "2.png"), ("0.jpg", b""), ("none", None), ("const:1", "1"),
        ("const:a=b", "a=b"), ("response.:1", ["x"]), ("response.1:", ["y"]), ("response.5:", []),
        ("images.-1:.0.path", "2.png"), ("prompt~a (.*)", "cat"), ("prompt~(dog)|(c)", "c"),
        ("json.0.img", "1.png"), ("json.1.1", 3), ("json.1:.0.0", 2), ("odd", "[x"),
        ("images.0.path~(\\d+)", "1"), ("prompt~(x)?cat", ""),
    ],
)  # fmt: skip
def test_a_column_leads_into_objects_and_lists(name, value):
    assert column(name)(ROW) == value


@pytest.mark.parametrize("name", ["gone", "response.2", "response.x", "a.c.e", "none.x", "odd.0"])
def test_a_missing_column_is_told_with_those_that_are_there(name):
    with pytest.raises(ValueError, match=rf"has no '{name}'; its columns are prompt, response"):
        column(name)(ROW)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("prompt~(dog)", r"'prompt' is 'a cat', without \(dog\)"),
        ("response~(x)", "'response' is .*, without"),
        ("gone~(x)", "has no 'gone'"),
        ("prompt~dog", "'dog' has no group"),
        ("prompt~(dog", "is no regular expression"),
    ],
)
def test_what_a_pattern_does_not_find_is_told(name, message):
    with pytest.raises(ValueError, match=message):
        column(name)(ROW)


def test_a_list_of_ratings_is_its_mean():
    one = ColumnMap(["text=prompt", "medium=images.0", "group=a.b", "score=s"])
    assert one.ranked(ROW | {"s": [1, 2, 6]}).value == 3
    for bad in ([], [1, None], [1, float("nan")], ["1"]):
        with pytest.raises(ValueError, match="it must be a number"):
            one.ranked(ROW | {"s": bad})


def test_a_label_is_read_by_what_the_user_says_it_means():
    columns = ColumnMap([*PAIR, "label=pref"])
    found = columns.pair(ROW, FileLabels(parse_meanings(["left=1", "right=2", "both=tie"])))
    assert (found.text, found.candidates, found.label) == ("a cat", ("1.png", "2.png"), 1)
    assert not found.may_swap
    with pytest.raises(UnknownLabelError, match="the label is left"):
        columns.pair(ROW, FileLabels())
    with pytest.raises(TieError):
        columns.pair(ROW | {"pref": "x"}, FileLabels(parse_meanings(["left=1", "r=2", "x=tie"])))


def test_two_scores_with_a_margin():
    columns = ColumnMap([*PAIR, "first_score=s1", "second_score=s2"], tie_margin=0.1)
    labels = FileLabels()
    assert columns.pair(ROW, labels).label == 1
    assert columns.pair(ROW | {"s2": 0.9}, labels).label == 2
    with pytest.raises(TieError):
        columns.pair(ROW | {"s2": 0.65}, labels)
    assert labels.ties == 1
    for bad in (None, "high", float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"the first_score is .*; it must be a number"):
            columns.pair(ROW | {"s1": bad}, labels)


def test_a_constant_label_says_nothing_by_its_place():
    found = ColumnMap([*PAIR, "label=const:1"]).pair(ROW, FileLabels())
    assert (found.label, found.may_swap) == (1, True)


def test_candidates_that_are_rows_have_a_group_and_a_rank():
    one = ["text=prompt", "medium=images.0", "group=a.b"]
    assert ColumnMap([*one, "score=s1"]).ranked(ROW).value == 0.7
    # The first rank is the best.
    assert ColumnMap([*one, "rank=s1"]).ranked(ROW).value == -0.7


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (PAIR, "needs label or first_score and second_score"),
        ([*PAIR, "first_score=a"], "needs label or first_score and second_score"),
        ([*PAIR, "label=a", "first_score=b"], "needs label or first_score and second_score"),
        ([*PAIR, "label=a", "first_score=b", "second_score=c"], "needs label or first_score"),
        ([*PAIR, "label=a", "labels=b"], "--map labels=...: not one of .* Did you mean 'label'"),
        ([*PAIR, "label=a", "label=b"], "names a target twice"),
        ([*PAIR[1:], "label=a"], "has no text=COLUMN"),
        (["text", "label=a"], "--map text: must be TARGET=COLUMN"),
        (["text=", "label=a"], "must be TARGET=COLUMN"),
        (["text=a", "medium=b", "rank=c"], "has no group=COLUMN"),
        (["text=a", "medium=b", "group=c"], "needs rank or score"),
        (["text=a", "medium=b", "group=c", "rank=d", "score=e"], "needs rank or score"),
        (["text=a", "medium=b", "group=c", "rank=d", "label=e"], "--map label=...: not one of"),
    ],
)
def test_a_map_that_makes_no_comparison_is_refused(columns, message):
    with pytest.raises(ValueError, match=message):
        ColumnMap(columns)
