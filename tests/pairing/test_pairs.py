"""Which texts about one presentation become pairs."""

from collections import Counter
from itertools import count

import pytest
from cot_reward.pairing.pairs import Rules, Text, margin, pairs_of, similarity
from helpers.texts import cot
from hypothesis import given
from hypothesis import strategies as st

TASK = "image_generation"
ROWS = count()


def made(text, answer=1, model="m", **other):
    fields = {"source": "s", "order": "given", "prompt": "p", "row": next(ROWS)} | other
    return Text(text=text, model=model, answer=answer, **fields)


def rules(number=1, select="closest-text", pair_from="any", max_similarity=1.0, seed=0, **other):
    return Rules(number, select, pair_from, max_similarity, seed, **other)


def texts(chosen, rejected, *wanted, **named):
    pairs, _ = pairs_of(chosen, rejected, rules(*wanted, **named), "place", TASK)
    return [(pair.chosen.text, pair.rejected.text) for pair in pairs]


def fates(chosen, rejected, *wanted, **named):
    """Why texts are in no pair, by text."""
    _, found = pairs_of(chosen, rejected, rules(*wanted, **named), "place", TASK)
    by_row = {text.row: text.text for text in (*chosen, *rejected)}
    return {by_row[row]: fate for row, fate in found.items()}


def test_the_closest_texts_are_paired_first():
    chosen = [made("a b c d"), made("x y z w")]
    rejected = [made("x y z q", 2), made("a b q r", 2), made("a b c d e f g", 2)]
    assert texts(chosen, rejected, 1) == [("x y z w", "x y z q")]
    assert texts(chosen, rejected, 2) == [("x y z w", "x y z q"), ("a b c d", "a b q r")]
    # Words count, not characters.
    assert texts([made("a b c")], [made("abcdef b c", 2), made("c b a", 2)]) == [
        ("a b c", "abcdef b c")
    ]
    assert texts([made("a")], [made("a b c", 2), made("z", 2)], 1, "closest-length") == [("a", "z")]


def test_hardest_is_the_wrong_text_that_argues_best_with_the_right_one_that_argues_least():
    sure, unsure = cot((9, 9), (1, 1), 1), cot((5, 6), (5, 5), 1)
    bold, shy = cot((1, 2), (9, 9), 2), cot((5, 5), (5, 6), 2)
    chosen, rejected = [made(sure), made(unsure)], [made(bold, 2), made(shy, 2)]
    assert texts(chosen, rejected, 1, "hardest") == [(unsure, bold)]
    assert margin(sure, 1, TASK) == pytest.approx(16 / 20)
    assert margin(sure, 2, TASK) == pytest.approx(-16 / 20)
    assert margin("<think>x</think><answer>Image 1 is better</answer>", 1, TASK) == 0
    assert margin(cot((0,), (0,), 1), 1, TASK) == 0


def test_random_pairs_depend_on_the_seed_alone():
    chosen = [made(f"c {n}") for n in range(6)]
    rejected = [made(f"r {n}", 2) for n in range(6)]
    drawn = {tuple(texts(chosen, rejected, 2, "random", seed=seed)) for seed in range(9)}
    assert len(drawn) > 1
    again = texts(chosen[::-1], rejected[::-1], 2, "random", seed=3)
    assert again == texts(chosen, rejected, 2, "random", seed=3)


def test_all_takes_every_pair():
    chosen, rejected = [made(f"c {n}") for n in range(3)], [made(f"r {n}", 2) for n in range(4)]
    assert len(set(texts(chosen, rejected, 1, "all"))) == 12


def test_so_many_pairs_of_each_length_are_there_to_choose_from():
    chosen = [made("a b c d"), made("a b c d e f g h")]
    rejected = [made("a b c", 2), made("a b x y z", 2)]
    assert texts(chosen, rejected, 1) == [("a b c d", "a b c")]
    # The second is longer where it is rejected.
    assert texts(chosen, rejected, 1, of_each_length=True) == [
        ("a b c d", "a b c"), ("a b c d", "a b x y z")
    ]  # fmt: skip
    # If several pairs are kept, no text may be in too many: the lengths take turns.
    chosen, rejected = [made("a b c d e f g"), made("a b")], [made("a b c", 2), made("a b c d", 2)]
    long, short = ("a b c d e f g", "a b c d"), ("a b", "a b c")
    assert texts(chosen, rejected, 2, chosen_uses=1) == [short, long]
    far, near = ("a b c d e f g", "a b c"), ("a b", "a b c d")
    assert texts(chosen, [rejected[0]], 2, of_each_length=True) == [short]
    assert texts(chosen, [rejected[0]], 2, of_each_length=True, rejected_uses=2) == [short, far]
    every = {"of_each_length": True, "chosen_uses": 0, "rejected_uses": 0}
    assert texts(chosen, rejected, 2, **every) == [short, near, long, far]


def test_the_length_with_fewer_pairs_begins():
    """One wrong text, which is in one pair only, between right texts of both lengths."""
    chosen = [made("a b c d e f g"), made("a b c d e f g h"), made("a b")]
    rejected = [made("a b c d e", 2)]
    assert texts(chosen, rejected, 4) == [("a b c d e f g", "a b c d e")]
    assert texts(chosen, rejected, 4, of_each_length=True) == [("a b", "a b c d e")]


def test_equal_lengths_begin_by_chance_and_in_opposite_ways_in_both_orders():
    begun = Counter()
    for number in range(200):
        longer = []
        for answer in (1, 2):
            chosen = [made("a b c d", answer), made("a b", answer)]
            rejected = [made("a b c", 3 - answer)]
            wanted = rules(4, of_each_length=True)
            (pair,), _ = pairs_of(chosen, rejected, wanted, f"{number} {answer}", TASK)
            longer.append(pair.longer)
        assert sum(longer) == 0
        begun[longer[0]] += 1
    assert 70 <= begun[1] <= 130


def test_same_model():
    chosen = [made("a b c", model="m"), made("x y z", model="n")]
    rejected = [made("x y q", 2, model="m")]
    assert texts(chosen, rejected, 9)[0] == ("x y z", "x y q")
    for mode in ("prefer-same-model", "same-model"):
        assert texts(chosen, rejected, 9, pair_from=mode) == [("a b c", "x y q")]
    others = [made("x y q", 2, model="other")]
    assert texts(chosen, others, 9, pair_from="same-model") == []
    assert texts(chosen, others, 9, pair_from="prefer-same-model") == [("x y z", "x y q")]
    # Two texts of unknown models are not of one model.
    unknown = [made("a", model="")], [made("b", 2, model="")]
    assert texts(*unknown, pair_from="same-model") == []
    assert texts(*unknown, pair_from="prefer-same-model") == [("a", "b")]


def test_equal_answers_are_no_pair_unless_asked():
    assert texts([made("a", 1)], [made("b", 1)], 9) == []
    assert texts([made("a", 1)], [made("b", 1)], 9, same_answer=True) == [("a", "b")]


def test_equal_texts_count_once_whatever_their_case_and_space():
    twice = [made("a b"), made("A  b\n"), made("a b")], [made("c", 2), made("c", 2)]
    assert texts(*twice, 9) == [("A  b\n", "c")]
    found = pairs_of(*twice, rules(9), "", TASK)[1]
    assert Counter(found.values()) == {"identical": 3}
    assert texts([made("a b c")], [made("A b  c", 2)], 9) == []


def test_texts_that_are_nearly_the_same_are_no_pair():
    words = [str(n) for n in range(100)]
    chosen = " ".join(words)
    near, far = " ".join([*words[:-1], "x"]), " ".join([*words[:-5], *"vwxyz"])
    assert similarity("abcd", "abxd") == 0.75
    assert similarity("", "abcd") == 0
    for limit, made_of in ((0.98, [far]), (0.95, [far]), (0.94, []), (1.0, [near])):
        rejected = [made(near, 2, model="n"), made(far, 2, model="m")]
        assert [b for _, b in texts([made(chosen)], rejected, max_similarity=limit)] == made_of
    # One of several near-identical texts of one side and model is kept.
    alike = [made(far, 2), made(far + " y", 2), made("z", 2)]
    assert fates([made(chosen)], alike, max_similarity=0.97) == {
        far + " y": "near_identical", "z": "unselected"
    }  # fmt: skip
    assert set(fates([made(chosen)], [made(near, 2)], max_similarity=0.97).values()) == {
        "near_identical"
    }


def test_why_a_text_is_in_no_pair():
    chosen = [made("a b c"), made("q r s", model="n"), made("a b c")]
    rejected = [made("a b x", 2), made("a y z", 2)]
    assert fates(chosen, rejected, 1, pair_from="same-model") == {
        "a b c": "identical", "q r s": "no_partner", "a y z": "unselected",
    }  # fmt: skip
    assert fates(chosen, rejected, 1, pair_from="prefer-same-model")["q r s"] == "unselected"


SIDE = st.lists(
    st.tuples(st.sampled_from("abcdefgh"), st.sampled_from("mno")), min_size=1, max_size=9
)


@given(
    SIDE, SIDE, st.integers(1, 5),
    st.sampled_from(["closest-text", "closest-length", "random", "hardest", "all"]),
    st.sampled_from(["prefer-same-model", "same-model", "any"]), st.randoms(),
)  # fmt: skip
def test_every_pair_obeys_its_definition(right, wrong, number, select, pair_from, draw):
    chosen = [made(f"c {text}", 1, model) for text, model in right]
    rejected = [made(f"r {text}", 2, model) for text, model in wrong]
    wanted = rules(number, select, pair_from)
    pairs, left = pairs_of(chosen, rejected, wanted, "p", TASK)
    assert all(pair.chosen in chosen and pair.rejected in rejected for pair in pairs)
    assert [pair.cost for pair in pairs] == sorted(pair.cost for pair in pairs)
    if select != "all":
        assert len(pairs) <= number
        # No text is repeated so often that a model would learn it by heart.
        assert max(Counter(pair.chosen.text for pair in pairs).values(), default=0) <= 2
        assert max(Counter(pair.rejected.text for pair in pairs).values(), default=0) <= 1
    shared = {text.model for text in chosen} & {text.model for text in rejected}
    if pair_from == "same-model" or (pair_from == "prefer-same-model" and shared):
        assert all(pair.same_model for pair in pairs)
    assert bool(pairs) == (bool(shared) or pair_from != "same-model")
    used = {row for pair in pairs for row in (pair.chosen.row, pair.rejected.row)}
    assert used | left.keys() == {text.row for text in (*chosen, *rejected)}
    assert not used & left.keys()
    draw.shuffle(chosen)
    draw.shuffle(rejected)
    again, _ = pairs_of(chosen, rejected, wanted, "p", TASK)
    assert [(p.chosen[:5], p.rejected[:5], p.cost) for p in again] == [
        (p.chosen[:5], p.rejected[:5], p.cost) for p in pairs
    ]
