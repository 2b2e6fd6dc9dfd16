"""With several pairs a comparison, balanced lengths keep as many pairs as can be kept."""

import itertools
from collections import Counter

import pytest
from cot_reward.pairing import all_pairs
from cot_reward.pairing.all_pairs import Limits
from helpers.merging import run
from helpers.pair_table import BalancedPairs, possible_pair
from helpers.rows import judged_row
from helpers.texts import cot
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


def keeps(rows, limits):
    """Whether no comparison, chosen text or rejected text is in too many of these pairs."""
    return all(
        most == 0 or max(Counter(map(key, rows)).values(), default=0) <= most
        for most, key in (
            (limits.per_comparison, lambda row: row["id"]),
            (limits.chosen_uses, lambda row: (row["id"], row["chosen_answer"], row["chosen_text"])),
            (
                limits.rejected_uses,
                lambda row: (row["id"], row["chosen_answer"], row["rejected_text"]),
            ),
        )
    )


def is_even(rows, positions):
    total = len(rows)
    longer = sum(row["longer"] for row in rows)
    answers = sum(2 * row["chosen_answer"] - 3 for row in rows)
    return abs(longer) <= max(1, total / 100) and (
        not positions or abs(answers) <= max(1, total / 100)
    )


TEXTS = st.tuples(st.sampled_from("ab"), st.integers(1, 2), st.integers(0, 2), st.integers(0, 2))


@pytest.mark.slow
@given(
    st.dictionaries(
        TEXTS, st.tuples(st.sampled_from([1, 1, -1, 0]), st.booleans()), min_size=1, max_size=10
    ),
    st.builds(Limits, st.integers(2, 4), st.integers(0, 2), st.integers(0, 2)),
    st.booleans(),
)
@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_the_choice_is_the_largest_of_all(tmp_path, drawn, limits, positions):
    rows = []
    for number, ((id_, answer, chosen, rejected), (longer, spare)) in enumerate(drawn.items()):
        row = possible_pair(number, id_, answer, longer, number % 3, place=f"{id_}{answer}")
        texts = {"chosen_text": chosen, "rejected_text": rejected}
        rows.append(row | texts | {"spare": spare, "rank_in_presentation": number})
    made = BalancedPairs(
        tmp_path, rows, limits.per_comparison, positions=positions, lengths=True, limits=limits
    )
    kept = [rows[row["pair"]] for row in made.kept]
    assert keeps(kept, limits)
    assert is_even(kept, positions)
    best = max(
        len(chosen)
        for size in range(len(rows) + 1)
        for chosen in itertools.combinations(rows, size)
        if keeps(chosen, limits) and is_even(chosen, positions)
    )
    assert len(kept) == best


def test_among_equal_choices_the_best_pairs_are_taken(tmp_path):
    rows = [
        possible_pair(n, "a", 1, longer, cost) | {"spare": spare, "rank_in_presentation": n}
        for n, (longer, cost, spare) in enumerate(
            [(1, 3, False), (1, 1, True), (-1, 4, False), (-1, 2, True)]
        )
    ]
    made = BalancedPairs(tmp_path, rows, 2, positions=False, lengths=True, limits=Limits(2, 0, 0))
    assert [row["pair"] for row in made.kept] == [1, 3]


def responses(comparisons):
    """Of each comparison two right and two wrong texts: short and long ones.

    The closest pairs are those of equal length, in which the chosen text is the longer one.
    """
    right, wrong = [], []
    for n in range(comparisons):
        shown = {"caption": f"cat {n}", "images": (f"{n}a.png", f"{n}b.png")}
        for sample, words in enumerate((10, 30)):
            remark = " ".join(f"w{k}" for k in range(words))
            right.append(
                judged_row(cot((8, 7), (6, 7), 1, remark=f"{remark} and "), sample=sample, **shown)
            )
            wrong.append(judged_row(cot((6, 7), (8, 7), 2, remark=remark), sample=sample, **shown))
    return right, wrong


@pytest.mark.parametrize("few", [True, False])
def test_pairs_that_a_first_choice_leaves_out_are_found(tmp_path, monkeypatch, capsys, few):
    if not few:
        monkeypatch.setattr(all_pairs, "MAX_PAIRS", 0)
    pairs, summary = run(
        tmp_path, *responses(10), "--balance-lengths", "--no-balance-positions",
        "--pairs-per-comparison", 2,
    )  # fmt: skip
    assert ("note: more than 0 pairs are possible" in capsys.readouterr().err) is not few
    assert abs(summary["chosen_longer"] - summary["rejected_longer"]) <= 1
    uses = Counter((pair["id"], pair["rejected"]) for pair in pairs)
    assert max(uses.values()) == 1
    assert max(Counter((pair["id"], pair["chosen"]) for pair in pairs).values()) <= 2
    # The short right text with the long wrong one, the long right one with the short wrong one.
    if few:
        assert len(pairs) == 20
    assert sum(summary["correct_side"].values()) == 2 * summary["correct_side"]["rows"]
