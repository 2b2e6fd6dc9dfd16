"""When two greedy answers are of the same weights."""

import pytest
from cot_reward.client.probe import difference

ANSWER = [["Image", -0.5, 1.5], [" 1", -1.0, 0.8], [" is", -0.1, 3.0]]


def moved(by: float) -> list[list]:
    return [[token, logprob + by, lead] for token, logprob, lead in ANSWER]


@pytest.mark.parametrize(
    "now",
    [
        ANSWER,
        moved(0.05),
        moved(-0.05),
        [],
        [["a text alone"]],
        # Two tokens that were nearly equally likely: the last bits decide.
        [["Image", -0.5, 1.5], [" 2", -1.0, 0.05], ["!", -9.0, 3.0]],
        ANSWER[:2],
    ],
)
def test_rounding_is_no_difference(now: list) -> None:
    assert difference(ANSWER, now) == ""
    assert difference(now, ANSWER) == ""


@pytest.mark.parametrize(
    ("now", "words"),
    [
        (moved(0.3), "log-probs of the same 3 tokens differ by 0.30 on average"),
        (moved(-2.0), "differ by 2.00"),
        # One token alone.
        ([ANSWER[0], [" 1", -1.4, 0.8], ANSWER[2]], "0.13 on average and 0.40 at most"),
        ([["The", -0.5, 1.5], *ANSWER[1:]], "goes on with 'Image' there, with 'The' now"),
    ],
)
def test_other_weights_are_told(now: list, words: str) -> None:
    assert words in difference(ANSWER, now)


def test_texts_alone_are_compared_where_there_are_no_log_probs() -> None:
    assert difference([["a"]], [["a"]]) == ""
    assert difference([["a"]], [["b"]]) == 'the answer was "a" and is "b"'
