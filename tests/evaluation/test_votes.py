"""Votes, strict scores and cluster intervals, on cases by hand and beside brute force."""

from itertools import combinations
from typing import Any

import numpy as np
import pytest
from cot_reward.evaluation.clusters import Clusters, interval
from cot_reward.evaluation.strict import MACRO, OVERALL, item_values, strict_score
from cot_reward.evaluation.votes import majority, pass_at, powers, votes_at
from cot_reward.stats import wilson
from helpers.benchmarks import answers_of, random_answers
from hypothesis import given, settings
from hypothesis import strategies as st

PICKS = st.integers(1, 4).flatmap(
    lambda samples: st.lists(
        st.lists(st.lists(st.integers(0, 2), min_size=samples, max_size=samples),
                 min_size=2, max_size=2),
        min_size=1, max_size=3,
    )
)  # fmt: skip


@given(PICKS, st.integers(1, 4))
@settings(max_examples=60)
def test_votes_are_the_mean_over_all_draws(picks: Any, k: int) -> None:
    answers = answers_of(picks)
    found = votes_at(answers, k)
    if k > answers.samples:
        assert np.isnan(found).all()
        return
    for number, item in enumerate(picks):
        margins = []
        for drawn in combinations(range(answers.samples), k):
            votes = [order[sample] for order in item for sample in drawn]
            margins.append(votes.count(1) - votes.count(2))
        wanted = [np.mean([test(margin) for margin in margins]) for test in (
            lambda m: m > 0, lambda m: m == 0, lambda m: m < 0,
        )]  # fmt: skip
        assert found[number] == pytest.approx(wanted)


@given(PICKS, st.integers(1, 4))
@settings(max_examples=60)
def test_pass_at_k_is_the_share_of_draws_with_a_right_one(picks: Any, k: int) -> None:
    answers = answers_of(picks)
    if k > answers.samples:
        assert np.isnan(pass_at(answers, k)).all()
        return
    for number, item in enumerate(picks):
        shares = [np.mean([1 in drawn for drawn in combinations(order, k)]) for order in item]
        assert pass_at(answers, k)[number] == pytest.approx(np.mean(shares))


def test_votes_of_samples_that_are_missing_do_not_count() -> None:
    picks = [[[1, 1, -1], [1, 2, 1]], [[-1, -1, -1], [-1, -1, -1]]]
    found = votes_at(answers_of(picks), 2)
    # Two samples are there in both orders: three votes for 1, one for 2.
    assert found[0] == pytest.approx([1, 0, 0])
    assert np.isnan(found[1]).all()
    assert powers(8) == [1, 2, 4, 8]
    assert powers(5) == [1, 2, 4]
    assert majority(np.array([[1, 1, 2], [1, 2, 0], [0, 0, 0], [2, 0, -1]])).tolist() == [
        1,
        0,
        0,
        2,
    ]


def test_the_strict_score_by_hand() -> None:
    picks = [
        [[1, 1], [1, 2]],  # right, right; right, wrong
        [[0, 2], [2, 2]],  # no answer, wrong; wrong, wrong
        [[1, 2], [1, 2]],  # a tie
    ]
    answers = answers_of(picks, [1, 1, 0], ["a", "b", "b"])
    values = item_values(answers)
    assert values["accuracy"].tolist()[:2] == [0.75, 0.0]
    assert np.isnan(values["accuracy"][2])
    assert values["unparsed"].tolist() == [0.0, 0.25, 0.0]
    assert values["right_in_both"].tolist()[:2] == [0.5, 0.0]
    # The second sample of both orders; a text without an answer survives nothing.
    assert values["survives_swap"].tolist() == [0.5, 0.5, 1.0]
    # Shown first is candidate 1 in the first order, candidate 2 in the second.
    assert values["answers_1"].tolist() == [0.75, 2 / 3, 0.5]
    score = strict_score(answers)
    groups = score["groups"]
    assert {name: groups[name]["accuracy"]["share"] for name in groups} == {
        "a": 0.75, "b": 0.0, OVERALL: 0.375, MACRO: 0.375,
    }  # fmt: skip
    assert groups["b"]["accuracy"]["items"] == 1
    assert (score["items"], score["ties"], score["texts"]) == (3, 1, 12)
    assert groups[OVERALL]["vote"]["share"] == 0.5


@pytest.mark.parametrize("seed", range(6))
def test_overall_and_macro_follow_from_the_groups(seed: int) -> None:
    score = strict_score(random_answers(seed, groups=["a", "b", "b", "c"], ties=True))
    groups = dict(score["groups"])
    overall, macro = groups.pop(OVERALL), groups.pop(MACRO)
    for metric in overall:
        figures = [group[metric] for group in groups.values()]
        items = sum(figure["items"] for figure in figures)
        total = sum(figure["share"] * figure["items"] for figure in figures)
        assert overall[metric]["items"] == items
        assert overall[metric]["share"] == pytest.approx(total / items)
        assert macro[metric]["share"] == pytest.approx(np.mean([f["share"] for f in figures]))
        assert overall[metric]["low"] <= overall[metric]["share"] <= overall[metric]["high"]


def test_one_order_alone_has_no_swap() -> None:
    picks = np.array([[[1], [-1]], [[2], [-1]], [[0], [-1]]])
    score = strict_score(answers_of(picks))
    assert score["orders"] == 1
    assert "survives_swap" not in score["groups"][OVERALL]
    assert score["groups"][OVERALL]["accuracy"]["share"] == pytest.approx(1 / 3)


def test_the_interval_of_single_items_is_the_ordinary_bootstrap() -> None:
    from scipy.stats import bootstrap

    values = np.random.default_rng(0).random(300) ** 2
    draws = Clusters([str(n) for n in range(300)], resamples=4000).means(values[:, None])
    low, high = interval(draws[:, 0])
    wanted = bootstrap((values,), np.mean, n_resamples=4000, method="percentile", rng=1)
    assert (low, high) == pytest.approx(tuple(wanted.confidence_interval), abs=0.004)


def test_wilson_is_that_of_statsmodels() -> None:
    from statsmodels.stats.proportion import proportion_confint

    for successes, of in ((0, 10), (7, 10), (1250, 1250), (811, 1250)):
        assert wilson(successes, of) == pytest.approx(
            proportion_confint(successes, of, method="wilson")
        )


def test_a_cluster_bootstrap_covers_the_truth() -> None:
    """95% intervals hold the true mean in some 95 of 100 worlds; without clusters far less often.

    Items of a cluster share most of their difficulty, as questions about one image do.
    """
    choice = np.random.default_rng(0)
    clusters = np.repeat(np.arange(60), 5)
    covered = {"clusters": 0, "items": 0}
    worlds = 200
    for _ in range(worlds):
        difficulty = choice.normal(0, 1.5, 60)[clusters]
        chance = 1 / (1 + np.exp(-difficulty))
        values = (choice.random(300) < chance).astype(float)[:, None]
        names = {"clusters": [str(n) for n in clusters], "items": [str(n) for n in range(300)]}
        for name, of_items in names.items():
            low, high = interval(Clusters(of_items, resamples=500).means(values)[:, 0])
            # The difficulties are symmetric around 0.
            covered[name] += low <= 0.5 <= high
    assert 0.90 <= covered["clusters"] / worlds <= 0.985
    assert covered["items"] / worlds < 0.90
