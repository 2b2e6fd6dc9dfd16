"""What prompts share: the longest text that so many of them end with."""

from cot_reward.rows.wording import shared_suffix
from hypothesis import given
from hypothesis import strategies as st


@given(st.lists(st.text("ab\n", max_size=8), min_size=1, max_size=9), st.data())
def test_the_longest_shared_suffix(texts, data):
    least = data.draw(st.integers(1, len(texts)))
    found = shared_suffix(texts, least)

    def having(ending: str) -> int:
        return sum(text.endswith(ending) for text in texts)

    assert having(found) >= least
    assert all(having(text[start:]) < least for text in texts for start in range(len(text))
               if len(text) - start > len(found))  # fmt: skip
