"""Which pairs of a comparison are taken first, and which comparisons are held out."""

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
