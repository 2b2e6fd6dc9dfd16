"""Shares of the comparisons."""

import re

import pytest
from cot_reward.records import comparison_key
from cot_reward.rows.shards import Shard
from hypothesis import given
from hypothesis import strategies as st


@given(
    st.lists(st.text(min_size=1), unique=True, max_size=20), st.integers(min_value=1, max_value=50)
)
def test_a_comparison_is_of_one_share(captions: list[str], count: int) -> None:
    for caption in captions:
        key = comparison_key("image_generation", caption, (), ("a.png", "b.png"))
        holders = [n for n in range(1, count + 1) if Shard(n, count).holds(key)]
        assert len(holders) == 1


def test_the_rule_stays() -> None:
    """Machines with different versions must agree: the rule is 1 + (first 16 digits) mod N."""
    key = "00000000000000ff" + "f" * 48
    assert Shard(1 + 255 % 7, 7).holds(key)
    assert Shard(1 + 255 % 8, 8).holds(key)
    assert not Shard(1, 8).holds(key)
    assert Shard(1, 1).holds(key)


def test_shares_are_about_equal() -> None:
    keys = [comparison_key("video", str(n), (), ("a", "b")) for n in range(8000)]
    sizes = [sum(map(Shard(number, 8).holds, keys)) for number in range(1, 9)]
    assert sum(sizes) == 8000
    assert all(880 < size < 1120 for size in sizes), sizes


def test_its_text_is_what_is_parsed() -> None:
    assert Shard.parse("2/8") == Shard(2, 8)
    assert str(Shard.parse("2/8")) == "2/8"


@pytest.mark.parametrize("text", ["0/4", "5/4", "0/0"])
def test_a_number_outside_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{text} is no share: the first number")):
        Shard.parse(text)


@pytest.mark.parametrize(
    "text", ["x", "", "1", "1/", "/4", "1/2/3", "-1/4", "1/-4", "1.0/4", "١/٤"]
)
def test_what_is_no_share_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="write I/N, as in 2/8"):
        Shard.parse(text)
