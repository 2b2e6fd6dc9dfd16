"""Schedules of pairs: connected, within the budget, even."""

from collections import Counter

import pytest
from cot_reward.reward.bradley_terry import components
from cot_reward.reward.schedule import all_pairs, pairs_of
from hypothesis import given
from hypothesis import strategies as st

budgets = st.integers(2, 24).flatmap(
    lambda n: st.tuples(st.just(n), st.integers(n - 1, n * (n - 1) // 2), st.integers(0, 5))
)


@given(budgets)
def test_a_bounded_schedule(case):
    count, most, seed = case
    pairs = pairs_of(count, most, seed)
    assert len(pairs) == most == len({frozenset(pair) for pair in pairs})
    assert all(i != j for i, j in pairs)
    assert len(components(count, pairs)) == 1
    assert pairs == pairs_of(count, most, seed)


@given(st.integers(6, 24), st.integers(1, 2))
def test_candidates_are_compared_as_often_as_each_other(count, cycles):
    seen = Counter(i for pair in pairs_of(count, count * cycles) for i in pair)
    assert max(seen.values()) - min(seen.values()) <= 2 * cycles


@given(st.integers(2, 24))
def test_each_comes_first_in_half_of_its_pairs(count):
    first = Counter(i for i, _ in all_pairs(count))
    for i in range(count):
        assert abs(2 * first[i] - (count - 1)) <= 1


def test_too_few_to_connect():
    with pytest.raises(ValueError, match="at least 3"):
        pairs_of(4, 2)


def test_few_candidates():
    assert pairs_of(0) == pairs_of(1) == []
    assert pairs_of(2, 1) == [(0, 1)]
