"""Which pairs are kept when positions, lengths and sources are balanced, against brute force."""

import itertools
from collections import Counter

import pytest
from cot_reward.errors import UserError
from cot_reward.pairing.quotas import quotas
from helpers.pair_table import BalancedPairs, possible_pair
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

SLOW = settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


STRATUM = ("train", "s", "image_generation", "")


def quotas_of_one(cells, positions, lengths, limit=None):
    limits = None if limit is None else {STRATUM: limit}
    return quotas({STRATUM: cells}, positions, lengths, limits)[STRATUM]


def within(difference: int, total: int) -> bool:
    return abs(difference) <= max(1, 0.01 * total)


def test_an_order_is_chosen_rather_than_a_pair_dropped(tmp_path):
    # Both orders of ten comparisons; the first order always has the closer texts.
    pairs = [
        possible_pair(n, f"{n // 2}", 1 + n % 2, cost=n % 2, place=str(n % 2)) for n in range(20)
    ]
    made = BalancedPairs(tmp_path, pairs)
    assert made.count("answer") == {1: 5, 2: 5}
    assert len({row["id"] for row in made.kept}) == 10
    assert Counter(row["answer"] for row in made.rows if row["first_choice"]) == {1: 10}
    assert made.changes["exchanged_for_positions"] == {"s/image_generation": 5}
    assert made.changes["dropped_for_positions"] == {}


def test_the_cheapest_changes_come_first(tmp_path):
    pairs = []
    for n in range(10):
        pairs += [
            possible_pair(2 * n, f"{n}", 1, cost=1),
            possible_pair(2 * n + 1, f"{n}", 2, cost=2 + n, place="q"),
        ]
    made = BalancedPairs(tmp_path, pairs)
    assert {row["id"] for row in made.kept if row["answer"] == 2} == set("01234")


def test_further_pairs_of_a_comparison_go_before_comparisons(tmp_path):
    pairs = [possible_pair(n, f"{n // 3}", 1, rank=n % 3) for n in range(9)]
    pairs += [possible_pair(9 + n, f"x{n}", 2) for n in range(3)]
    made = BalancedPairs(tmp_path, pairs, count=3)
    assert made.count("answer") == {1: 4, 2: 3}
    assert len({row["id"] for row in made.kept}) == 6


def test_lengths_are_evened_out_without_moving_the_positions(tmp_path):
    """Pairs are exchanged within an answer if a comparison has both lengths, otherwise dropped."""
    pairs = []
    for n in range(20):
        pairs.append(possible_pair(2 * n, f"{n}", 1 + n % 2, 1, cost=1))
        if n < 8:
            pairs.append(possible_pair(2 * n + 1, f"{n}", 1 + n % 2, -1, cost=2))
    made = BalancedPairs(tmp_path, pairs, lengths=True)
    assert made.changes["exchanged_for_lengths"] == {"s/image_generation": 8}
    # Twelve longer chosen texts are left against eight; one more is allowed, three are dropped.
    assert made.changes["dropped_for_lengths"] == {"s/image_generation": 3}
    assert made.changes["dropped_for_positions"] == {}
    assert made.count("longer") == {1: 9, -1: 8}


@pytest.mark.slow
@given(st.data())
@SLOW
def test_nothing_more_is_dropped_than_must_be(tmp_path, data):
    """One pair a comparison, of one order or both; against every possible choice."""
    kinds = data.draw(st.lists(st.sampled_from(["1", "1", "2", "12"]), min_size=1, max_size=8))
    pairs = [
        possible_pair(
            10 * n + int(answer), f"{n}", int(answer), 0, data.draw(st.integers(0, 3)), "s", answer
        )
        for n, kind in enumerate(kinds)
        for answer in kind
    ]
    made = BalancedPairs(tmp_path, pairs)
    counts = made.count("answer")
    assert within(counts[1] - counts[2], len(made.kept))
    choices = ("".join(choice) for choice in itertools.product(*[(*kind, "") for kind in kinds]))
    best = max(
        len(choice)
        for choice in choices
        if within(choice.count("1") - choice.count("2"), len(choice))
    )
    assert len(made.kept) == best
    assert max(Counter(row["id"] for row in made.kept).values(), default=0) <= 1


def test_lengths_are_evened_out_by_choosing_orders(tmp_path):
    """Longer in one order, shorter in the other: nothing has to be dropped."""
    pairs = [
        possible_pair(n, f"{n // 2}", 1 + n % 2, 1 - 2 * (n % 2), n % 2, "s", f"{n % 2}")
        for n in range(40)
    ]
    made = BalancedPairs(tmp_path, pairs, positions=False, lengths=True)
    assert made.count("longer") == {1: 10, -1: 10}
    # Half the comparisons are longer where the answer is 1, half where it is 2.
    pairs = [
        possible_pair(2 * n + k, f"{n}", 1 + (n + k) % 2, 1 - 2 * k, k, "s", f"{k}")
        for n in range(20)
        for k in (0, 1)
    ]
    made = BalancedPairs(tmp_path, pairs, lengths=True)
    assert made.count("longer") == {1: 10, -1: 10}
    assert made.count("answer") == {1: 10, 2: 10}
    assert made.changes["exchanged_for_lengths"] == {"s/image_generation": 10}


@pytest.mark.slow
@given(st.data(), st.booleans(), st.integers(1, 2))
@SLOW
def test_nothing_more_is_dropped_for_lengths_than_must_be(tmp_path, data, positions, count):
    cells = st.tuples(st.sampled_from([1, 2]), st.sampled_from([1, 1, -1, 0]))
    offers = data.draw(st.lists(st.lists(cells, min_size=1, max_size=3), min_size=1, max_size=5))
    pairs = [
        possible_pair(10 * n + k, f"{n}", *cell, data.draw(st.integers(0, 2)), "s", f"{cell[0]}", k)
        for n, offered in enumerate(offers)
        for k, cell in enumerate(offered)
    ]
    made = BalancedPairs(tmp_path, pairs, count, positions=positions, lengths=True)

    def even(kept):
        answers, longer = (sum(column) for column in zip(*kept, strict=True)) if kept else (0, 0)
        good = within(longer, len(kept))
        return good and (not positions or within(2 * answers - 3 * len(kept), len(kept)))

    subsets = [
        [part for size in range(count + 1) for part in itertools.combinations(offered, size)]
        for offered in offers
    ]
    choices = ([*itertools.chain(*choice)] for choice in itertools.product(*subsets))
    best = max(len(kept) for kept in choices if even(kept))
    assert even([(row["answer"], row["longer"]) for row in made.kept])
    assert len(made.kept) == best
    assert max(Counter(row["id"] for row in made.kept).values(), default=0) <= count
    dropped = sum(made.changes["dropped_for_positions"].values())
    dropped += sum(made.changes["dropped_for_lengths"].values())
    assert dropped == sum(row["first_choice"] for row in made.rows) - len(made.kept)
    assert dropped == Counter(row["state"] for row in made.rows)["dropped_by_balance"]


@pytest.mark.slow
@given(
    st.lists(
        st.tuples(
            st.sampled_from("abcdef"), st.sampled_from([1, 1, 2]), st.sampled_from([1, 1, -1, 0]),
            st.sampled_from("st"), st.integers(0, 5),
        ),
        max_size=40,
    ),
    st.booleans(), st.booleans(), st.integers(1, 4), st.sampled_from([0.0, 0.3]),
)  # fmt: skip
@SLOW
def test_every_source_and_split_is_balanced(tmp_path, drawn, positions, lengths, count, fraction):
    pairs = [
        possible_pair(n, id_, answer, longer, cost, source, f"{answer}", n)
        for n, (id_, answer, longer, source, cost) in enumerate(drawn)
    ]
    made = BalancedPairs(tmp_path, pairs, count, fraction, positions=positions, lengths=lengths)
    again = BalancedPairs(
        tmp_path, pairs[::-1], count, fraction, positions=positions, lengths=lengths
    )
    assert made.rows == again.rows
    for split, source in {(row["split"], row["source"]) for row in made.rows}:
        answers = made.count("answer", split=split, source=source)
        longer = made.count("longer", split=split, source=source)
        assert not positions or within(answers[1] - answers[2], answers.total())
        assert not lengths or within(longer[1] - longer[-1], longer.total())
    assert max(Counter(row["id"] for row in made.kept).values(), default=0) <= count
    splits = {row["id"]: row["split"] for row in made.rows}
    assert all(splits[row["id"]] == row["split"] for row in made.rows)
    if not positions and not lengths:
        assert all(row["state"] == "used" for row in made.rows if row["first_choice"])


@given(st.dictionaries(
    st.tuples(st.sampled_from([1, 2]), st.sampled_from([-1, 0, 1])), st.integers(1, 7), min_size=1
), st.one_of(st.none(), st.integers(0, 12)))  # fmt: skip
@settings(deadline=None, max_examples=80)
def test_quotas_are_the_most_that_is_balanced(cells, limit):
    found = quotas_of_one(cells, True, True, limit)

    def balanced(kept):
        total = sum(kept.values())
        return (
            within(sum(n if a == 1 else -n for (a, _), n in kept.items()), total)
            and within(sum(n * longer for (_, longer), n in kept.items()), total)
            and (limit is None or total <= limit)
        )

    assert balanced(found)
    assert all(0 <= found[cell] <= most for cell, most in cells.items())
    if len(cells) <= 4:
        best = max(
            sum(choice)
            for choice in itertools.product(*[range(most + 1) for most in cells.values()])
            if balanced(dict(zip(cells, choice, strict=True)))
        )
        assert sum(found.values()) == best


def test_one_percent_of_many_is_used():
    assert quotas_of_one({(1, 0): 100_000, (2, 0): 10_000}, True, False) == {
        (1, 0): 10_202,
        (2, 0): 10_000,
    }
    million = quotas_of_one(
        {(1, 1): 10**6, (1, -1): 999_000, (2, 1): 10**6, (2, -1): 10**6}, True, True
    )
    assert sum(quotas_of_one(million, True, True).values()) == 3_999_000


def test_sources_are_mixed_by_their_weights_and_stay_balanced(tmp_path):
    pairs = [possible_pair(n, f"s{n}", 1 + n % 2, source="s") for n in range(400)]
    pairs += [possible_pair(400 + n, f"t{n}", 1 + n % 2, source="t") for n in range(100)]
    made = BalancedPairs(tmp_path, pairs, weights={"s": 2.0})
    assert made.count("source") == {"s": 200, "t": 100}
    assert made.count("answer", source="s") == {1: 100, 2: 100}
    assert Counter(row["state"] for row in made.rows)["dropped_by_weights"] == 200
    assert BalancedPairs(tmp_path, pairs, weights={"s": 0}).count("source") == {"t": 100}
    assert BalancedPairs(tmp_path, pairs, weights={"s": 4, "t": 1}).count("source") == {
        "s": 400,
        "t": 100,
    }
    with pytest.raises(UserError, match=r"no pair has the source 'u'; there are 's', 't'"):
        BalancedPairs(tmp_path, pairs, weights={"u": 1})


# --- many sources ---------------------------------------------------------------------------------


def small_sources(number, answers, both_orders=False, **other):
    """So many sources, each with a comparison for each of the answers, in one order or both."""
    pairs = []
    for source in range(number):
        for place, answer in enumerate(answers):
            about = {"id_": f"{source} {place}", "source": f"s{source:03}"} | other
            pairs.append(possible_pair(2 * len(pairs), answer=answer, **about))
            if both_orders:
                # The other order costs more, the more the later the source.
                other_order = {"answer": 3 - answer, "cost": 1 + source, "place": "q"}
                pairs.append(possible_pair(2 * len(pairs) + 1, **about, **other_order))
    return pairs


@pytest.mark.parametrize(
    ("answers", "kept"),
    [
        # 202 pairs may lean by 2, that is by 1%: all 100 of answer 1, and 102 of answer 2.
        ([1, 2, 2], {1: 100, 2: 102}),
        ([1, 1, 2], {1: 102, 2: 100}),
        ([1, 1, 1, 2, 2, 2], {1: 300, 2: 300}),
        ([1], {1: 1}),
    ],
)
def test_many_small_sources_do_not_lean_together(tmp_path, answers, kept):
    made = BalancedPairs(tmp_path, small_sources(100, answers))
    assert made.count("answer") == kept
    for source in {row["source"] for row in made.kept}:
        answers_of_one = made.count("answer", source=source)
        assert abs(answers_of_one[1] - answers_of_one[2]) <= 1
    dropped = sum(made.changes["dropped_for_positions"].values())
    assert dropped == len(made.rows) - len(made.kept)


def test_leans_of_small_sources_are_turned_round_rather_than_dropped(tmp_path):
    made = BalancedPairs(tmp_path, small_sources(100, [1, 2, 2], both_orders=True))
    assert made.count("answer") == {1: 150, 2: 150}
    assert sum(made.changes["exchanged_for_positions"].values()) == 50
    # The cheapest exchanges, of the first sources.
    turned = {s for s in range(100) if made.count("answer", source=f"s{s:03}") == {1: 2, 2: 1}}
    assert turned == set(range(50))


def test_leans_that_go_both_ways_stay(tmp_path):
    pairs = small_sources(50, [1, 2, 2])
    pairs += [
        pair
        | {"start": 1000 + pair["start"], "id": f"x{pair['id']}", "source": f"x{pair['source']}"}
        for pair in small_sources(50, [1, 1, 2])
    ]
    made = BalancedPairs(tmp_path, pairs)
    assert made.count("answer") == {1: 150, 2: 150}


@pytest.mark.parametrize("weights", [{}, {"s000": 1.0}])
def test_each_split_is_balanced_as_a_whole(tmp_path, weights):
    pairs = small_sources(60, [1, 2, 2, 1, 2, 2, 2])
    made = BalancedPairs(tmp_path, pairs, eval_fraction=0.3, weights=weights)
    for split in ("train", "eval"):
        answers = made.count("answer", split=split)
        assert min(answers.values()) >= 20
        assert within(answers[1] - answers[2], answers.total())


def test_each_kind_of_pairs_is_balanced_as_a_whole(tmp_path):
    """Pairs of one model lean to 1 in every source, published ones to 2: together they are even."""
    pairs = small_sources(50, [1, 1, 2])
    pairs += [
        pair | {"start": 1000 + pair["start"], "id": f"x{pair['id']}", "kind": "published"}
        for pair in small_sources(50, [1, 2, 2])
    ]
    made = BalancedPairs(tmp_path, pairs, separate_kinds=True)
    for kind in ("same_model", "published"):
        answers = made.count("answer", kind=kind)
        assert min(answers.values()) == 50
        assert within(answers[1] - answers[2], answers.total())


def test_many_small_sources_do_not_lean_to_a_length(tmp_path):
    pairs = small_sources(60, [1, 2, 1], longer=1)
    pairs += [
        pair | {"start": 1000 + pair["start"], "id": f"x{pair['id']}"}
        for pair in small_sources(60, [1, 2], longer=-1)
    ]
    made = BalancedPairs(tmp_path, pairs, lengths=True)
    longer, answers = made.count("longer"), made.count("answer")
    assert within(longer[1] - longer[-1], longer.total())
    assert within(answers[1] - answers[2], answers.total())
    assert longer.total() >= 240
