"""The probability of the answer, from log-probs as servers write them."""

import math
from typing import Any

import pytest
from cot_reward.client.answer_probability import probability_of_first


def choice(*tokens: Any) -> dict[str, Any]:
    """A choice of tokens, each a word or (word, {word: probability})."""
    content = []
    for token in tokens:
        word, likely = token if isinstance(token, tuple) else (token, {token: 1.0})
        content.append({
            "token": word, "logprob": math.log(likely[word]),
            "top_logprobs": [{"token": w, "logprob": math.log(p)} for w, p in likely.items()],
        })  # fmt: skip
    return {"logprobs": {"content": content}}


@pytest.mark.parametrize(
    ("tokens", "wanted"),
    [
        # The answer, and not the candidates that the reasoning names.
        (["Image 2 is grey.", "<answer>", "Image ", ("1", {"1": 0.6, "2": 0.2, "x": 0.2})], 0.75),
        (["<answer>Image", (" 2", {" 2": 0.5, " 1": 0.25}), " is better</answer>"], 1 / 3),
        (["Video", " ", ("2", {"2": 0.9})], 0.0),
        (['{"winner": "Answer ', ("1", {"1": 0.3, "2": 0.7}), '"}'], 0.3),
        # One token for several characters.
        ([("Image 1 is", {"Image 1 is": 0.8, "Image 2 is": 0.2}), " better"], 0.8),
        (["no answer at all"], None),
        (["Image 12"], None),
        ([], None),
    ],
)
def test_the_probability_of_the_first_candidate(tokens: list[Any], wanted: float | None) -> None:
    found = probability_of_first(choice(*tokens))
    assert found == (wanted if wanted is None else pytest.approx(wanted))


def test_a_server_without_log_probs_has_none() -> None:
    for one in ({}, {"logprobs": None}, {"logprobs": {"content": None}}):
        assert probability_of_first(one) is None
    certain = choice("Image ", "1")
    certain["logprobs"]["content"][1]["top_logprobs"] = None
    assert probability_of_first(certain) == 1.0
