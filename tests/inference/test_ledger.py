"""The ledger: how journaled units find their comparison, whichever candidate is named first."""

from cot_reward.inference.ledger import Ledger, Unit
from cot_reward.records import Comparison, Verdict

COMPARISON = Comparison("image_generation", "a cat", ("a.png", "b.png"), 1)
MIRRORED = Comparison("image_generation", "a cat", ("b.png", "a.png"), 2)
RIGHT, WRONG = Verdict("correct", "coherent", 1, True), Verdict("incorrect", "tie", 2)


def entry(ascending, **other):
    return {"key": COMPARISON.key, "ascending": ascending} | other


def test_label_and_order_follow_from_the_candidate_shown_first():
    for listed, ascending_order in ((COMPARISON, "given"), (MIRRORED, "swapped")):
        with Ledger(None) as ledger:
            assert ledger.presentation(listed.key, True) is None
            ledger.add(listed, "data:1")
            other_order = "swapped" if ascending_order == "given" else "given"
            task = "image_generation"
            assert ledger.presentation(listed.key, True) == (task, ascending_order, 1)
            assert ledger.presentation(listed.key, False) == (task, other_order, 2)


def test_a_response_stays_and_a_failure_gives_way():
    with Ledger(None) as ledger:
        ledger.add(COMPARISON, "data:1")
        (listed,) = ledger
        ledger.enter(entry(True, first=0, count=3, reason="refused"), 0, None)
        ledger.enter(entry(True, sample=1), 10, RIGHT)
        ledger.enter(entry(True, first=1, count=2, reason="deadline"), 20, None)
        ledger.enter(entry(True, sample=1), 30, WRONG)
        ledger.enter(entry(True, sample=7), 40, None)
        ledger.enter(entry(False, sample=0), 50, WRONG)
        assert ledger.units(listed, "given", 4) == [
            Unit(0, 0, True, None), Unit(1, 10, False, RIGHT), Unit(2, 20, True, None),
        ]  # fmt: skip
        assert ledger.units(listed, "swapped", 4) == [Unit(0, 50, False, WRONG)]
        assert ledger.progress(("given", "swapped"), 4) == (2, 2)
        assert ledger.progress(("given",), 8) == (2, 2)


def test_units_of_a_comparison_that_is_not_listed_count_for_nothing():
    with Ledger(None) as ledger:
        ledger.enter(entry(True, sample=0), 0, None)
        assert ledger.progress(("given", "swapped"), 4) == (0, 0)
