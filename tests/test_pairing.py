"""Which texts become pairs, and how positions are balanced."""

from collections import Counter

from conftest import cot
from cot_reward.pairing import SELECTIONS, Judged, balance, distance, pairs_of, to_pair
from hypothesis import given
from hypothesis import strategies as st


def judged(text, answer=1, model="m", id_="k", order="given", source="s", **other):
    return Judged(
        id=id_, order=order, task="image_generation", source=source, prompt="p", text=text,
        images=("a", "b"), videos=(), answer=answer, model=model, template_hash="h", **other,
    )  # fmt: skip


def texts(pairs):
    return [(a.text, b.text) for a, b in pairs]


def test_distance_counts_words_to_change():
    assert distance("a b c", "a x c", "closest-text") == 1
    assert distance("a b c", "a b c d", "closest-text") == 1
    assert distance("a b c", "c b a", "closest-text") == 2
    assert distance("a b c", "x y z", "closest-length") == 0
    assert distance("a b c", "a", "closest-length") == 2


def test_the_closest_texts_are_paired_first():
    chosen = [judged("a b c d"), judged("x y z w")]
    rejected = [judged("x y z q", 2), judged("a b q r", 2), judged("a b c d e f g", 2)]
    assert texts(pairs_of(chosen, rejected, 1, "closest-text", "off", 0)) == [
        ("x y z w", "x y z q")
    ]
    assert texts(pairs_of(chosen, rejected, 2, "closest-text", "off", 0)) == [
        ("x y z w", "x y z q"),
        ("a b c d", "a b q r"),
    ]
    closest = pairs_of(
        [judged("a")], [judged("a b c", 2), judged("z", 2)], 1, "closest-length", "off", 0
    )
    assert texts(closest) == [("a", "z")]


def test_random_pairs_depend_on_the_seed_alone():
    chosen = [judged(f"c {n}") for n in range(6)]
    rejected = [judged(f"r {n}", 2) for n in range(6)]
    made = {tuple(texts(pairs_of(chosen, rejected, 2, "random", "off", seed))) for seed in range(9)}
    assert len(made) > 1
    again = texts(pairs_of(chosen[::-1], rejected[::-1], 2, "random", "off", 3))
    assert again == texts(pairs_of(chosen, rejected, 2, "random", "off", 3))


def test_same_model():
    chosen = [judged("a b c", model="m"), judged("x y z", model="n")]
    rejected = [judged("x y q", 2, model="m")]
    assert texts(pairs_of(chosen, rejected, 9, "closest-text", "off", 0))[0] == ("x y z", "x y q")
    for mode in ("prefer", "require"):
        assert texts(pairs_of(chosen, rejected, 9, "closest-text", mode, 0)) == [("a b c", "x y q")]
    others = [judged("x y q", 2, model="other")]
    assert pairs_of(chosen, others, 9, "closest-text", "require", 0) == []
    assert texts(pairs_of(chosen, others, 9, "closest-text", "prefer", 0)) == [("x y z", "x y q")]


def test_equal_answers_are_no_pair_and_equal_texts_count_once():
    assert pairs_of([judged("a", 1)], [judged("b", 1)], 9, "closest-text", "off", 0) == []
    twice = pairs_of([judged("a")] * 3, [judged("b", 2)] * 3, 9, "closest-text", "off", 0)
    assert texts(twice) == [("a", "b")]


SIDE = st.lists(
    st.tuples(st.sampled_from("abcdefgh"), st.sampled_from("mno")), min_size=1, max_size=9
)


@given(
    SIDE, SIDE, st.integers(1, 5), st.sampled_from(SELECTIONS),
    st.sampled_from(["prefer", "require", "off"]), st.randoms(),
)  # fmt: skip
def test_every_pair_obeys_its_definition(right, wrong, count, select, same_model, draw):
    chosen = [judged(f"c {text}", 1, model) for text, model in right]
    rejected = [judged(f"r {text}", 2, model) for text, model in wrong]
    pairs = pairs_of(chosen, rejected, count, select, same_model, 0)
    assert len(pairs) <= count
    assert all(a in chosen and b in rejected for a, b in pairs)
    assert len({(a.text, b.text) for a, b in pairs}) == len(pairs)
    # No text is repeated so often that it would be learnt by heart.
    assert max(Counter(a.text for a, _ in pairs).values(), default=0) <= 2
    assert max(Counter(b.text for _, b in pairs).values(), default=0) <= 1
    shared = {a.model for a in chosen} & {b.model for b in rejected}
    if same_model == "require" or (same_model == "prefer" and shared):
        assert all(a.model == b.model for a, b in pairs)
    assert bool(pairs) == (bool(shared) or same_model != "require")
    draw.shuffle(chosen)
    draw.shuffle(rejected)
    assert pairs_of(chosen, rejected, count, select, same_model, 0) == pairs


GROUPS = st.lists(
    st.tuples(st.sampled_from([1, 1, 1, 2]), st.integers(0, 4), st.sampled_from("st"))
)


@given(GROUPS, st.integers(0, 3))
def test_positions_are_balanced_in_each_source_and_nothing_more_is_dropped(sizes, seed):
    groups = {
        f"{number}": [
            (
                judged(f"c{n}", answer, id_=f"{number}", source=source),
                judged(f"r{n}", 3 - answer, id_=f"{number}", source=source),
            )
            for n in range(size)
        ]
        for number, (answer, size, source) in enumerate(sizes)
    }
    kept, dropped = balance(groups, seed)
    assert (kept, dropped) == balance(dict(reversed(groups.items())), seed)
    for source in "st":
        before, after = (
            Counter(a.answer for pairs in made.values() for a, _ in pairs if a.source == source)
            for made in (groups, kept)
        )
        assert abs(after[1] - after[2]) <= max(1, 0.01 * after.total())
        minor = 1 if before[1] <= before[2] else 2
        # The minority is never touched, and of the majority no more goes than must.
        assert after[minor] == before[minor]
        assert after[3 - minor] >= min(before[3 - minor], before[minor])
        assert dropped[f"{source}/image_generation"] == before.total() - after.total()
    for key, pairs in kept.items():
        assert all(pair in groups[key] for pair in pairs)


def test_a_pair_carries_the_presentation_of_its_texts():
    row = to_pair(judged(cot(), 1, "m"), judged(cot(answer=2), 2, "n")).to_row()
    assert (row["problem"], row["images"], row["order"]) == ("p", ["a", "b"], "given")
    assert (row["chosen"], row["rejected"]) == (cot(), cot(answer=2))
    assert (row["chosen_model"], row["rejected_model"]) == ("m", "n")
