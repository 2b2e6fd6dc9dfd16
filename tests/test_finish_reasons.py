"""What the words of servers mean that say why a text ended."""

import pytest
from cot_reward.finish_reasons import ending


@pytest.mark.parametrize(
    "word",
    ["", "stop", "STOP", "eos", "eos_token", "end_turn", "stop_sequence", "COMPLETE", "end_id",
     "FINISH_REASON_STOP", " stop ", "stop-sequence"],
)  # fmt: skip
def test_words_of_a_text_that_ended_by_itself(word):
    assert ending(word) == "finished"


@pytest.mark.parametrize(
    "word",
    ["length", "LENGTH", "max_tokens", "MAX_TOKENS", "FINISH_REASON_MAX_TOKENS", "model_length",
     "max_output_tokens", "model_context_window_exceeded", "max-tokens"],
)  # fmt: skip
def test_words_of_a_text_that_was_cut(word):
    assert ending(word) == "truncated"


@pytest.mark.parametrize(
    "word",
    ["abort", "error", "content_filter", "SAFETY", "tool_calls", "tool_use", "refusal", "null",
     "stopped because of a fault", "lengthy", "finish_reason_unspecified"],
)  # fmt: skip
def test_every_other_word_is_no_sign_of_a_whole_text(word):
    assert ending(word) == "other"
