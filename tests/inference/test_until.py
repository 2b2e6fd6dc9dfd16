"""The rule of --until: what is asked follows from the texts alone, however a run came to them."""

import pytest
from cot_reward.errors import UserError
from cot_reward.inference.ledger import Unit
from cot_reward.inference.settings import InferenceSettings
from cot_reward.inference.until import Rule
from cot_reward.judge import FINDINGS, TRUSTED
from cot_reward.records import Verdict
from cot_reward.settings import parse
from hypothesis import given
from hypothesis import strategies as st

SIDES = {"r": "right", "w": "wrong", "-": "", "f": ""}


def rule(until="right,wrong", first=2, samples=8, **other) -> Rule:
    flags = {"until": until, "first": first, "num_samples": samples} | other
    argv = ["--data", "x.json", "--out", "out"]
    for name, value in flags.items():
        argv += [f"--{name}", *(value if isinstance(value, list) else [str(value)])]
    return Rule.of(parse(InferenceSettings, "", argv=argv))


def units(outcomes: str) -> list[Unit]:
    """A unit for each letter: right, wrong, - of no side, failed, and . that was not asked."""
    return [
        Unit(n, 10 * n, letter == "f", None, SIDES[letter])
        for n, letter in enumerate(outcomes)
        if letter != "."
    ]


@pytest.mark.parametrize(
    ("there", "missing", "settled"),
    [
        ("", [0, 1], 0),
        ("rw", [], 6),
        ("rr", [2, 3], 0),
        ("r-", [2, 3], 0),
        ("--rr", [4, 5], 0),
        ("rrrw", [], 4),
        ("r-w-", [], 4),
        # A half-written round is asked to its end, though it is not needed any more.
        ("rrw", [3], 0),
        ("rr.w", [2], 0),
        ("rrrrrrr", [7], 0),
        ("rrrrrrrr", [], 0),
        ("rrrrrrrw", [], 0),
        # Texts of an earlier start with more samples count in their round.
        ("rrrwrr", [], 2),
        ("rw..rr", [], 4),
    ],
)
def test_rounds_are_asked_completely_until_both_sides_are_there(there, missing, settled):
    state = rule().state(units(there))
    assert (state.missing, state.settled, state.failed) == (missing, settled, [])


@pytest.mark.parametrize(
    ("until", "there", "missing"),
    [
        ("right", "wr", []), ("right", "ww", [2, 3]), ("wrong", "rw", []), ("wrong", "rr", [2, 3]),
        ("wrong", "--", [2, 3]),
    ],
)  # fmt: skip
def test_one_side_can_be_enough(until, there, missing):
    assert rule(until).state(units(there)).missing == missing


def test_the_last_round_may_be_shorter_and_the_first_one_a_single_sample():
    assert rule(first=3).state(units("rrrrrr")).missing == [6, 7]
    assert rule(first=1).state(units("r")).missing == [1]
    assert rule(first=1).state(units("rw")).settled == 6


def test_without_until_everything_is_asked_at_once():
    fixed = rule("off")
    assert fixed.state([]).missing == list(range(8))
    state = fixed.state(units("rw.wf"))
    assert (state.missing, [unit.sample for unit in state.failed]) == ([2, 5, 6, 7], [4])
    assert fixed.state(units("rwwwffff")).settled == 0
    # As many failures as were asked for, and no more.
    assert len(fixed.state(units("f" * 8)).failed) == 8


def test_a_failed_round_stands_for_all_later_samples_until_it_is_asked_again():
    state = rule().state(units("rrff"))
    assert (state.missing, state.settled, state.passed_over) == ([], 0, 4)
    # Offset 30 is that of the last failure.
    assert [(unit.sample, unit.offset) for unit in state.failed] == [
        (2, 20), (3, 30), (4, 30), (5, 30), (6, 30), (7, 30),
    ]  # fmt: skip
    assert rule().state(units("rrff"), retry_before=31).missing == [2, 3]
    # Failures of this start are not asked again by it.
    assert rule().state(units("rrff"), retry_before=20).missing == []
    # Part of a round failed: the comparison can be answered, so the next round is asked.
    assert rule().state(units("rf")).missing == [2, 3]
    assert [unit.sample for unit in rule().state(units("rfww")).failed] == [1]


def test_what_failed_and_is_not_needed_any_more_is_settled():
    state = rule().state(units("rwffff"))
    assert (state.failed, state.settled, state.passed_over) == ([], 6, 2)


@given(st.text("rw-f.", max_size=9), st.integers(1, 7), st.sampled_from(["right,wrong", "off"]))
def test_every_sample_has_one_state(there, first, until):
    state = rule(until, first).state(units(there))
    answered = sum(letter in "rw-" for letter in there[:8])
    failed = {unit.sample for unit in state.failed}
    assert len(failed) == len(state.failed)
    assert not failed & set(state.missing)
    accounted = answered + len(failed) + state.settled
    # Only what a missing round decides is open.
    assert accounted <= 8
    assert accounted == 8 or state.missing
    assert not (state.missing and state.settled)


@given(st.text("rw-", min_size=8, max_size=8), st.integers(1, 7), st.data())
def test_a_run_that_is_cut_anywhere_asks_the_same(texts, first, data):
    """Rounds are played against fixed texts; a cut keeps any part of the round in flight."""
    played, cut = set(), set()
    for asked in (played, cut):
        there: dict[int, str] = {}
        while (
            missing := rule(first=first)
            .state(units("".join(there.get(n, ".") for n in range(8))))
            .missing
        ):
            if asked is cut:
                missing = data.draw(st.lists(st.sampled_from(missing), min_size=1, unique=True))
            asked.update(missing)
            there |= {n: texts[n] for n in missing}
    assert played == cut


def test_a_text_counts_as_the_merger_takes_it():
    right, wrong = (
        lambda coherence: Verdict("correct", coherence, 1),
        lambda coherence: Verdict("incorrect", coherence, 2),
    )
    for finding in FINDINGS:
        usable = finding in TRUSTED
        assert rule().side(right(finding)) == ("right" if usable else "")
        assert rule().side(wrong(finding)) == ("wrong" if usable else "")
    strict = rule(until_coherence=["coherent"])
    assert strict.side(right("no_totals")) == ""
    lax = rule(until_coherence=["coherent", "tie"])
    assert (lax.side(wrong("tie")), lax.side(right("tie"))) == ("wrong", "right")
    for verdict in ("unparsed", "truncated"):
        assert rule().side(Verdict(verdict, "", 0)) == ""


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"first": 8}, "a first round of --first 8 is already all of --num-samples 8"),
        ({"samples": 1, "temperature": 0}, "--num-samples 1; give a smaller --first"),
        ({"first": 0}, "--first must be at least 1"),
        ({"until": "wrong,right"}, "is not one of off, right,wrong, right, wrong"),
        ({"until_coherence": ["coherence"]}, "no finding. Did you mean 'coherent'?"),
    ],
)
def test_mistakes_are_named(flags, message):
    with pytest.raises(UserError) as error:
        rule(**flags)
    assert message in str(error.value)


def test_first_alone_changes_nothing_and_the_maximum_has_two_names():
    assert rule("off", first=9).first == 8
    argv = ["--data", "x", "--out", "o", "--until", "right", "--max-samples", "6"]
    assert Rule.of(parse(InferenceSettings, "", argv=argv)).samples == 6
