"""Plans and rankings of results that are given: twins, failures, groups."""

import math

from cot_reward.reward.ranking import plan, ranking
from cot_reward.reward.results import Failure, Judgement, Vote
from hypothesis import given
from hypothesis import strategies as st

DOWN = Failure("deadline", "too late")


def judged(probability, votes=2):
    answer = 1 if probability > 0.5 else 2
    texts = tuple(Vote("given", answer, "parsed", "coherent", "") for _ in range(votes))
    return Judgement(answer, probability, True, {}, None, texts)


@given(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=8), st.data())
def test_any_results(contents, data):
    """Whatever fails: who has a strength is connected, ordered by it, and the others are named."""
    planned = plan(contents, None, 0)
    results = [
        data.draw(st.sampled_from([DOWN, judged(0.0), judged(0.5), judged(1.0)]))
        for _ in planned.pairs
    ]
    found = ranking(planned, results)
    assert sorted(found.order) == list(range(len(contents)))
    ranked = [i for i in found.order if i not in found.failures]
    assert list(found.order[: len(ranked)]) == ranked
    strengths = [found.strengths[i] for i in ranked]
    assert strengths == sorted(strengths, reverse=True)
    assert found.best == (ranked[0] if ranked else None)
    for i, strength in enumerate(found.strengths):
        assert math.isnan(strength) == (i in found.failures)
        assert math.isnan(found.low[i]) == math.isnan(found.high[i]) == math.isnan(strength)
        # Twins have the same values.
        first = contents.index(contents[i])
        assert strength == found.strengths[first] or i in found.failures
        assert (i in found.failures) == (first in found.failures)
    if len(set(contents)) > 1:
        connected = {k for i, j, one in found.comparisons if one for k in (i, j)}
        assert {contents[i] for i in ranked} <= {contents[k] for k in connected}


def test_the_largest_group_is_ranked_and_the_others_are_named():
    planned = plan("abcde", None, 0)
    joined = {frozenset("ab"), frozenset("bc"), frozenset("de")}
    results = [
        judged(1.0) if frozenset(("abcde"[i], "abcde"[j])) in joined else DOWN
        for i, j in planned.pairs
    ]
    found = ranking(planned, results)
    assert {found.failures[i].reason for i in (3, 4)} == {"not_connected"}
    assert set(found.order[:3]) == {0, 1, 2}


def test_a_candidate_whose_comparisons_all_fail_has_their_reason():
    planned = plan("abc", None, 0)
    found = ranking(planned, [DOWN if 2 in pair else judged(1.0) for pair in planned.pairs])
    assert found.failures == {2: DOWN}
    # Two that nothing was found out about have no best.
    alone = ranking(plan("ab", None, 0), [DOWN])
    assert alone.best is None
    assert alone.failures == {0: DOWN, 1: DOWN}


def test_a_reference_that_fails():
    planned = plan("ab", None, 0, DOWN)
    assert planned.pairs == []
    assert ranking(planned, []).failures[1].detail == "the reference: too late"
    planned = plan("ab", None, 0, "r")
    found = ranking(planned, [DOWN, judged(1.0)])
    assert found.failures == {0: DOWN}
    assert found.strengths[1] > 0


def test_a_swapped_judgement_is_the_other_way_round():
    votes = (
        Vote("given", 1, "parsed", "tie", "x", {"Style": (8, 3)}, (9, 4)),
        Vote("swapped", 0, "truncated", "", "y"),
    )
    one = Judgement(1, 0.75, False, {"Style": (8, 3)}, (9, 4), votes, 5, 6)
    turned = one.swapped()
    assert (turned.answer, turned.probability, turned.confidence) == (2, 0.25, 0.75)
    assert (turned.scores, turned.totals) == ({"Style": (3, 8)}, (4, 9))
    assert [(v.order, v.answer, v.total) for v in turned.votes] == [
        ("given", 0, None), ("swapped", 2, (4, 9)),
    ]  # fmt: skip
    assert turned.swapped() == one
    assert one.as_dict()["confidence"] == 0.75
