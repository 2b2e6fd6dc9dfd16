"""Which pairs of a comparison are taken first, and which comparisons are held out."""

from collections import Counter

from helpers.pair_table import BalancedPairs, possible_pair


def test_pairs_of_two_models_are_left_to_comparisons_without_others(tmp_path):
    pairs = [
        possible_pair(0, "a", 1, cost=9),
        possible_pair(1, "a", 2, cost=1, place="q") | {"kind": "other_cross_model"},
        possible_pair(2, "b", 2, cost=1) | {"kind": "other_cross_model"},
    ]
    for one_model, kept in ((True, [0, 2]), (False, [1, 2])):
        made = BalancedPairs(tmp_path, pairs, count=2, positions=False, one_model=one_model)
        assert set(kept) <= {row["pair"] for row in made.kept}
        assert len(made.kept) == (2 if one_model else 3)


def pairs_that_show(*shown):
    """A comparison for each list of media and captions; the answers take turns."""
    return [
        possible_pair(n, f"{n:03}", 1 + n % 2) | {"shown": list(nodes)}
        for n, nodes in enumerate(shown)
    ]


def test_comparisons_that_share_a_picture_or_a_caption_go_to_one_split(tmp_path):
    """Twenty families of four: a chain of pictures, so that the first and last share nothing."""
    shown = [(100 * f + k, 100 * f + k + 1) for f in range(20) for k in range(4)]
    made = BalancedPairs(tmp_path, pairs_that_show(*shown), eval_fraction=0.2, positions=False)
    split_of = {row["pair"]: row["split"] for row in made.rows}
    assert Counter(split_of.values()) == {"train": 64, "eval": 16}
    for first in range(0, 80, 4):
        assert len({split_of[first + k] for k in range(4)}) == 1


def test_a_family_larger_than_the_share_stays_in_train(tmp_path):
    shown = [(1, 10 + n) for n in range(60)] + [(100 + n,) for n in range(40)]
    made = BalancedPairs(tmp_path, pairs_that_show(*shown), eval_fraction=0.2, positions=False)
    held_out = {row["pair"] for row in made.rows if row["split"] == "eval"}
    assert len(held_out) == 20
    assert held_out <= set(range(60, 100))


def test_each_answer_gives_its_share_to_eval(tmp_path):
    made = BalancedPairs(tmp_path, pairs_that_show(*[(n,) for n in range(100)]), eval_fraction=0.2)
    assert made.count("answer", split="eval") == {1: 10, 2: 10}


def test_comparisons_of_one_family_are_split_one_by_one(tmp_path):
    made = BalancedPairs(tmp_path, pairs_that_show(*[(1, 10 + n) for n in range(40)]),
                         eval_fraction=0.25)  # fmt: skip
    assert made.count("answer", split="eval") == {1: 5, 2: 5}


def test_a_part_of_the_comparisons_is_held_out_whole(tmp_path):
    pairs = [possible_pair(n, f"{n // 3}", 1 + n // 3 % 2, rank=n % 3) for n in range(300)]
    made = BalancedPairs(tmp_path, pairs, count=3, eval_fraction=0.2)
    held_out = {row["id"] for row in made.rows if row["split"] == "eval"}
    assert len(held_out) == 20
    assert not held_out & {row["id"] for row in made.rows if row["split"] == "train"}
    other = BalancedPairs(tmp_path, pairs, count=3, eval_fraction=0.2, seed=1)
    assert held_out != {row["id"] for row in other.rows if row["split"] == "eval"}
    # A fraction of few comparisons is one, and never all of them.
    few = BalancedPairs(tmp_path, pairs[:6], count=3, eval_fraction=0.05)
    assert len({row["id"] for row in few.rows if row["split"] == "eval"}) == 1
    one = BalancedPairs(tmp_path, pairs[:1], eval_fraction=0.9)
    assert {row["split"] for row in one.rows} == {"train"}
