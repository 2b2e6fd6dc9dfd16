"""What travels: sampling that no server's defaults change, and texts that servers have split."""

import json

import pytest
from cot_reward.client import wire
from cot_reward.client.wire import NEUTRAL_SAMPLING, Sampling, restored_text


def test_every_sampling_parameter_is_stated() -> None:
    sampling = Sampling("m", 1.0, 0.9, 64, 1, 1, 1, dict(NEUTRAL_SAMPLING), seeds=2**31)
    sent = json.loads(wire.body(b"[]", sampling, count=4, seed=2**40 + 5))
    assert sent == {
        "model": "m", "n": 4, "temperature": 1.0, "top_p": 0.9, "max_tokens": 64, "seed": 5,
        "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0,
        "frequency_penalty": 0.0, "messages": [{"role": "user", "content": []}],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("message", "text", "how"),
    [
        ({"content": "<think>a</think>b"}, "<think>a</think>b", ""),
        ({"content": "no block"}, "no block", ""),
        ({"content": None}, "", ""),
        ({"content": "b", "reasoning": "a"}, "<think>a</think>b", "reasoning_field"),
        ({"content": "b", "reasoning_content": "\na\n"}, "<think>\na\n</think>b",
         "reasoning_field"),
        ({"content": "b", "reasoning": "a", "reasoning_content": "a"}, "<think>a</think>b",
         "reasoning_field"),
        # Cut inside the block, and a text that never opened one.
        ({"content": None, "reasoning": "a"}, "<think>a", "reasoning_field"),
        ({"content": "", "reasoning": "a"}, "<think>a", "reasoning_field"),
        ({"content": "<think>a</think>b", "reasoning": None}, "<think>a</think>b", ""),
        # The template ends in "<think>", so that the text begins inside.
        ({"content": "a</think>b"}, "<think>\na</think>b", "template_opening"),
        ({"content": "a</think><think>b"}, "<think>\na</think><think>b", "template_opening"),
    ],
)  # fmt: skip
def test_a_text_is_put_back_together(message: dict, text: str, how: str) -> None:
    assert restored_text(message) == (text, how)


@pytest.mark.parametrize("message", [{"content": 7}, {"content": "b", "reasoning": ["a"]}])
def test_a_text_of_another_type_breaks_the_protocol(message: dict) -> None:
    with pytest.raises(TypeError):
        restored_text(message)
