"""Strengths against closed forms and another optimiser; intervals against what was drawn."""

import math
import random

import numpy as np
import pytest
from cot_reward.reward.bradley_terry import MOST_PROFILED, components, fit
from cot_reward.reward.schedule import pairs_of
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize


def penalized(strengths, results):
    """The penalized log-likelihood, written out from its definition."""
    count = len(strengths)
    value, information = 0.0, np.zeros((count, count))
    for i, j, share, weight in results:
        p = 1 / (1 + math.exp(strengths[j] - strengths[i]))
        value += weight * (share * math.log(p) + (1 - share) * math.log(1 - p))
        apart = np.eye(count)[i] - np.eye(count)[j]
        information += weight * p * (1 - p) * np.outer(apart, apart)
    return value + np.linalg.slogdet(information[1:, 1:])[1] / 2


@st.composite
def some_results(draw, most=6):
    count = draw(st.integers(2, most))
    pairs = pairs_of(count, draw(st.integers(count - 1, count * (count - 1) // 2)))
    shares = st.sampled_from([0.0, 0.25, 0.5, 1.0])
    return count, [(i, j, draw(shares), draw(st.integers(1, 8))) for i, j in pairs]


@given(st.integers(0, 20), st.integers(0, 20))
def test_two_candidates_have_half_a_win_more_each(wins, losses):
    if wins + losses:
        found = fit(2, [(0, 1, wins / (wins + losses), wins + losses)])
        apart = math.log((wins + 0.5) / (losses + 0.5))
        assert found.strengths[0] - found.strengths[1] == pytest.approx(apart, abs=1e-6)


@settings(max_examples=30)
@given(some_results())
def test_another_optimiser_finds_the_same(case):
    count, results = case
    found = fit(count, results)
    best = minimize(
        lambda free: -penalized([*free, -sum(free)], results), np.zeros(count - 1), tol=1e-10
    )
    assert penalized(found.strengths, results) >= -best.fun - 1e-6
    assert list(found.strengths[:-1]) == pytest.approx(list(best.x), abs=0.01)
    assert sum(found.strengths) == pytest.approx(0, abs=1e-6)


@settings(max_examples=10)
@given(some_results(4), st.data())
def test_an_end_of_an_interval_is_where_the_profile_has_fallen(case, data):
    count, results = case
    found = fit(count, results)
    i = data.draw(st.integers(0, count - 1))
    top = penalized(found.strengths, results)
    for end in (found.low[i], found.high[i]):
        others = [k for k in range(count) if k != i]

        def value(free, end=end, others=others):
            strengths = np.empty(count)
            strengths[i] = end
            strengths[others] = [*free, -end - sum(free)]
            return -penalized(strengths, results)

        start = np.full(count - 2, -end / (count - 1))
        fallen = top + (minimize(value, start, tol=1e-10).fun if count > 2 else value(start))
        assert 2 * fallen == pytest.approx(3.841, abs=0.06)


@given(some_results())
def test_candidates_keep_their_strengths_under_other_numbers(case):
    count, results = case
    turned = fit(count, [(count - 1 - j, count - 1 - i, 1 - s, w) for i, j, s, w in results])
    found = fit(count, results)
    assert turned.strengths[::-1] == pytest.approx(found.strengths, abs=1e-5)
    assert turned.high[::-1] == pytest.approx(found.high, abs=0.05)


@given(st.integers(2, 8).flatmap(lambda n: st.lists(
    st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), min_size=n * (n - 1) // 2,
    max_size=n * (n - 1) // 2).map(lambda shares: (n, shares))))  # fmt: skip
def test_with_all_pairs_strengths_follow_win_rates(case):
    count, shares = case
    results = [(i, j, share, 2) for (i, j), share in zip(pairs_of(count), shares, strict=True)]
    wins = [0.0] * count
    for i, j, share, _ in results:
        wins[i] += share
        wins[j] += 1 - share
    strengths = fit(count, results).strengths
    for i in range(count):
        for j in range(count):
            if wins[i] > wins[j]:
                assert strengths[i] > strengths[j]
            elif wins[i] == wins[j]:
                assert strengths[i] == pytest.approx(strengths[j], abs=1e-5)


@pytest.mark.parametrize("count", [2, 3, 12, MOST_PROFILED, MOST_PROFILED + 5])
@pytest.mark.parametrize("weight", [1, 64, 10_000])
@pytest.mark.parametrize("sparse", [False, True])
def test_one_that_always_wins_stays_finite(count, weight, sparse):
    results = [(min(pair), max(pair), 1.0, weight) for pair in pairs_of(count)]
    if sparse:
        results = [one for one in results if one[1] == one[0] + 1]
    found = fit(count, results)
    assert np.isfinite([found.strengths, found.low, found.high]).all()
    assert list(found.strengths) == sorted(found.strengths, reverse=True)
    assert all(map(lambda a, b, c: a < b < c, found.low, found.strengths, found.high))


# Candidates, comparisons (None: all), votes, spread of the strengths -> the least coverage.
DRAWS = [(2, None, 4, 1.0, 0.94), (4, None, 1, 1.0, 0.94), (6, None, 4, 2.0, 0.93),
         (8, None, 1, 3.0, 0.93), (8, 12, 2, 1.5, 0.93)]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("count", "most", "votes", "spread", "least"), DRAWS)
def test_intervals_cover_the_strengths_that_were_drawn(count, most, votes, spread, least):
    draw = random.Random(0)
    covered = standard = total = 0
    for seed in range(150):
        true = [draw.gauss(0, spread) for _ in range(count)]
        true = [one - sum(true) / count for one in true]
        results = []
        for i, j in pairs_of(count, most, seed):
            p = 1 / (1 + math.exp(true[j] - true[i]))
            wins = sum(draw.random() < p for _ in range(votes))
            results.append((i, j, wins / votes, votes))
        found = fit(count, results)
        covered += sum(map(lambda a, b, c: a <= b <= c, found.low, true, found.high))
        standard += sum(a < b for a, b in zip(found.low, found.high, strict=True))
        total += count
    assert least <= covered / total <= 0.999
    assert standard == total


def test_with_a_reference_its_strength_is_zero():
    results = [(0, 3, 1.0, 2), (1, 3, 0.5, 2), (2, 3, 0.0, 2)]
    found = fit(4, results, zero=3)
    assert found.strengths == pytest.approx((math.log(5), 0, -math.log(5), 0), abs=1e-6)
    assert (found.low[3], found.high[3]) == (0, 0)
    # Each is compared with the reference alone, as if there were no others.
    pair = fit(2, [(0, 1, 1.0, 2)], zero=1)
    assert (found.low[0], found.high[0]) == pytest.approx((pair.low[0], pair.high[0]), abs=0.05)


def test_unconnected_candidates_cannot_be_compared():
    with pytest.raises(ValueError, match="connect"):
        fit(4, [(0, 1, 1.0, 1), (2, 3, 1.0, 1)])
    with pytest.raises(ValueError, match="connect"):
        fit(2, [])
    with pytest.raises(ValueError, match="weight"):
        fit(2, [(0, 1, 1.0, 0.1)])
    assert components(5, [(1, 3), (0, 4), (3, 2)]) == [[1, 2, 3], [0, 4]]
    assert fit(1, []).strengths == (0.0,)
    assert fit(0, []).strengths == ()
