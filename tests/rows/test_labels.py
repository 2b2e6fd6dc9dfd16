"""Labels: never read as another candidate, ties apart, and an error that says what to write."""

import shlex
from pathlib import Path
from typing import Any

import pytest
from cot_reward.errors import UserError
from cot_reward.inference.inputs import read_comparisons
from cot_reward.inference.ledger import Ledger
from cot_reward.rows.labels import FileLabels, TieError, parse_meanings
from helpers.rows import raw_row, write_lines

NAN = float("nan")


def rows_with(labels: list[Any]) -> list[dict[str, Any]]:
    return [
        {"task": "image_generation", "text": f"t{n}", "candidates": ["a", "b"], "label": label}
        for n, label in enumerate(labels)
    ]


def read(path: Path, rows: list[Any], *meanings: str) -> tuple[list[int], int, int]:
    """The labels of the comparisons of a file, and how many records are bad, how many are ties."""
    write_lines(path / "rows.jsonl", rows)
    with Ledger(None) as ledger:
        read_comparisons(
            ledger, [path / "rows.jsonl"], path, label_meanings=parse_meanings(meanings)
        )
        return [x.comparison.label for x in ledger], ledger.bad_count, ledger.tie_count


@pytest.mark.parametrize(
    "labels",
    [[1, 2, 2], [1.0, 2.0, 2.0], ["1", "2", " 2 "], ["1.0", "2.0", 2], [1, 2, 2, None, NAN]],
)
def test_labels_of_1_and_2_are_read_in_every_spelling(tmp_path: Path, labels: list[Any]) -> None:
    assert read(tmp_path, rows_with(labels)) == ([1, 2, 2], len(labels) - 3, 0)


# Labels of a file, its values in the error, and what the user answers.
OTHERS: list[tuple[list[Any], str, list[str]]] = [
    ([0, 1, 1], "1 (2), 0 (1)", ["0=1", "1=2"]),
    (["0", "1", "1"], "1 (2), 0 (1)", ["0=1", "1=2"]),
    ([0.0, 1.0, 1.0], "1 (2), 0 (1)", ["0=1", "1=2"]),
    ([0, 2, 2, 1], "2 (2), 0 (1), 1 (1)", ["0=1", "2=2", "1=tie"]),
    ([1, 2, 2, 3], "2 (2), 1 (1), 3 (1)", ["1=1", "2=2", "3=tie"]),
    ([1, -1, -1, 0], "-1 (2), 1 (1), 0 (1)", ["1=1", "-1=2", "0=tie"]),
    ([True, False, False], "false (2), true (1)", ["true=1", "false=2"]),
    (["A", "B", "B", "C"], "B (2), A (1), C (1)", ["A=1", "B=2", "C=tie"]),
    (["left", "right", "right"], "right (2), left (1)", ["left=1", "right=2"]),
    (["a=b", "b=a", "b=a"], "b=a (2), a=b (1)", ["a=b=1", "b=a=2"]),
    ([[1, 0], [0, 1], [0, 1]], "[0, 1] (2), [1, 0] (1)", ["[1, 0]=1", "[0, 1]=2"]),
]


@pytest.mark.parametrize(("labels", "values", "meanings"), OTHERS)
def test_other_labels_are_shown_with_counts_and_read_once_they_are_explained(
    tmp_path: Path, labels: list[Any], values: str, meanings: list[str]
) -> None:
    rows = rows_with(labels)
    with pytest.raises(UserError) as caught:
        read(tmp_path, rows)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'rows.jsonl'}: ")
    assert f"the labels are {values}. Say what" in message
    # The flags of the message are those that a shell needs.
    flags = shlex.split(message.partition("--labels ")[2].partition(", with")[0])
    assert sorted(flag.removesuffix("?") for flag in flags) == sorted(
        pair.rpartition("=")[0] + "=" for pair in meanings
    )
    assert read(tmp_path, rows, *meanings) == ([1, 2, 2], 0, len(labels) - 3)


def test_the_sentences_of_raw_data_may_have_a_tie(tmp_path: Path) -> None:
    rows = [raw_row(f"c{n}", ["a", "b"], label=1 + n % 2) for n in range(4)]
    assert read(tmp_path, rows) == ([1, 2, 1, 2], 0, 0)
    rows[3]["conversations"][1]["value"] = "Both images are equal."
    with pytest.raises(UserError, match=r"label of Both images are equal\. prefers.*is better"):
        read(tmp_path, rows)
    meanings = [f"Image {n} is better than Image {3 - n}.={n}" for n in (1, 2)]
    assert read(tmp_path, rows, *meanings, "Both images are equal.=tie") == ([1, 2, 1], 0, 1)
    assert read(tmp_path, rows, *meanings, "Both images are equal.=bad") == ([1, 2, 1], 1, 0)


def test_what_is_given_replaces_the_usual_meanings(tmp_path: Path) -> None:
    """With 0 and 1 as candidates, a 2 is nobody's second candidate."""
    with pytest.raises(UserError, match=r"a label of 2 prefers.*--labels"):
        read(tmp_path, rows_with([0, 1, 2]), "0=1", "1=2")


def test_scores_are_no_labels(tmp_path: Path) -> None:
    scores = [n / 100 for n in range(50, 99)]
    with pytest.raises(UserError, match=r"and 43 other values\. Say .* \.\.\., with 1"):
        read(tmp_path, rows_with(scores))


def test_a_file_of_ties_has_nothing_to_ask(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no usable comparison, 0 bad, 2 ties"):
        read(tmp_path, rows_with([0, 0]), "1=1", "2=2", "0=tie")


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (["0"], "--labels 0: must be VALUE=1"),
        (["0=3", "1=2"], "--labels 0=3: must be"),
        (["=1"], "--labels =1: must be"),
        (["0=1", "1=tie"], "a value that means 2"),
        (["0=1", "1=2", "0=2"], "gives '0' two meanings"),
    ],
)
def test_meanings_that_cannot_be_read(pairs: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_meanings(pairs)


def test_no_meaning_given_is_the_usual_one() -> None:
    assert parse_meanings([]) == {}
    labels = FileLabels({"x": "tie"})
    with pytest.raises(TieError):
        labels.preferred("x")
    assert (labels.ties, labels.seen) == (1, {"x": 1})
