"""Intervals against values worked out by hand, and the tally of judged rows."""

import random

import pytest
from cot_reward.stats import Tally, bootstrap_mean, paired_difference, share, tally, wilson
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        # With z = 1.96 by hand: (p + z²/2n ± z·sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n).
        (5, 10, 0.2366, 0.7634),
        (50, 100, 0.4038, 0.5962),
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (1, 1, 0.2065, 1.0),
        (95, 100, 0.8882, 0.9785),
        (540, 1000, 0.5090, 0.5707),
    ],
)
def test_wilson_against_known_values(successes, n, low, high):
    assert wilson(successes, n) == pytest.approx((low, high), abs=1e-4)


def test_nothing_seen_says_nothing():
    assert wilson(0, 0) == (0.0, 1.0)
    assert share(0, 0) == {"share": 0.0, "count": 0, "of": 0, "low": 0.0, "high": 1.0}


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_its_share_and_mirrors(case):
    successes, n = case
    low, high = wilson(successes, n)
    assert 0 <= low <= successes / n + 1e-12
    assert successes / n - 1e-12 <= high <= 1
    assert wilson(n - successes, n) == pytest.approx((1 - high, 1 - low))


def test_the_bootstrap_is_reproducible_and_close_to_the_normal_interval():
    draw = random.Random(1)
    values = [draw.gauss(3.0, 2.0) for _ in range(400)]
    low, high = bootstrap_mean(values, seed=5)
    assert (low, high) == bootstrap_mean(values, seed=5)
    mean = sum(values) / len(values)
    # 1.96 · 2 / sqrt(400) = 0.196
    assert mean - low == pytest.approx(0.196, abs=0.03)
    assert high - mean == pytest.approx(0.196, abs=0.03)


def test_the_paired_bootstrap_covers_the_true_difference():
    covered = 0
    for seed in range(100):
        draw = random.Random(seed)
        hard = [draw.random() for _ in range(80)]
        before = [float(draw.random() < 0.3 + 0.4 * h) for h in hard]
        after = [float(draw.random() < 0.4 + 0.4 * h) for h in hard]
        found = paired_difference(after, before, resamples=400, seed=seed)
        covered += found["low"] <= 0.1 <= found["high"]
    assert 88 <= covered <= 100


def test_pairing_takes_out_what_both_share():
    draw = random.Random(0)
    before = [draw.random() for _ in range(100)]
    after = [value + 0.01 for value in before]
    found = paired_difference(after, before)
    assert found["units"] == 100
    assert [found[name] for name in ("difference", "low", "high")] == pytest.approx([0.01] * 3)


def test_unequal_or_no_units_cannot_be_paired():
    with pytest.raises(ValueError, match="2 and 1 units"):
        paired_difference([1, 0], [1])
    with pytest.raises(ValueError, match="0 and 0 units"):
        paired_difference([], [])


def row(id_, order, verdict, answer, coherence="coherent", sample=0):
    return {
        "id": id_, "order": order, "sample": sample, "verdict": verdict, "answer": answer,
        "coherence": coherence,
    }  # fmt: skip


def test_the_tally():
    metrics = tally(
        [
            row("x", "given", "correct", 1),
            row("x", "swapped", "correct", 2, "tie"),
            row("y", "given", "correct", 1),
            row("y", "swapped", "incorrect", 1),
            row("z", "given", "unparsed", 0, ""),
            row("z", "swapped", "truncated", 0, ""),
        ]
    )
    assert metrics["judged"] == 6
    assert metrics["verdicts"] == {"correct": 3, "incorrect": 1, "unparsed": 1, "truncated": 1}
    assert metrics["coherence"] == {"coherent": 3, "tie": 1}
    # Unparsed and truncated responses count as wrong.
    assert (metrics["accuracy"]["count"], metrics["accuracy"]["of"]) == (3, 6)
    assert (metrics["well_formed"]["count"], metrics["well_formed"]["of"]) == (4, 6)
    assert (metrics["coherent"]["count"], metrics["coherent"]["of"]) == (3, 6)
    # Position bias is about the responses with an answer.
    assert (metrics["answers_1"]["count"], metrics["answers_1"]["of"]) == (3, 4)
    assert (metrics["survives_swap"]["count"], metrics["survives_swap"]["of"]) == (1, 3)
    assert metrics["pass_rate_histogram"] == {"0.00": 1, "0.50": 1, "1.00": 1}


def test_a_verdict_survives_the_swap_when_both_orders_name_the_same_candidate():
    verdicts = {
        "x": ("correct", "correct"),
        "y": ("incorrect", "incorrect"),
        "z": ("correct", "incorrect"),
        "u": ("unparsed", "unparsed"),
    }
    metrics = tally(
        [
            row(id_, order, verdict, 0 if verdict == "unparsed" else 1)
            for id_, both in verdicts.items()
            for order, verdict in zip(("given", "swapped"), both, strict=True)
        ]
    )
    assert (metrics["survives_swap"]["count"], metrics["survives_swap"]["of"]) == (2, 4)
    assert (metrics["right_in_both_orders"]["count"], metrics["right_in_both_orders"]["of"]) == (
        1, 4,
    )  # fmt: skip


def test_no_swap_where_one_order_was_asked():
    metrics = tally([row("x", "given", "correct", 1), row("y", "given", "correct", 1)])
    assert metrics["survives_swap"]["of"] == 0


def test_comparisons_one_by_one_give_the_same_as_all_at_once():
    rows = [row(id_, order, "correct", 1) for id_ in "xyz" for order in ("given", "swapped")]
    counts = Tally()
    for start in (0, 2, 4):
        counts.add(rows[start : start + 2], mismatches=1)
    assert counts.metrics() == tally(rows) | {"mismatch": 3}


def test_the_tally_of_nothing():
    assert tally([])["accuracy"] == share(0, 0)
