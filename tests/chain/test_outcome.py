"""Which model is the result of a run, after stage 3 was compared with stage 2."""

import json
import re
from pathlib import Path

import pytest
from cot_reward.chain.outcome import set_results
from cot_reward.chain.settings import Profile
from cot_reward.chain.state import Records
from cot_reward.chain.step import Step
from cot_reward.chain.steps import Chain
from cot_reward.errors import UserError


@pytest.fixture
def chain(tmp_path: Path) -> Chain:
    """Two rounds of DPO that have ended, but for their comparisons."""
    runs = tmp_path / "runs"
    for folder in ("eval_stage2", "eval_stage3", "round2/eval_stage3"):
        (runs / folder / "sampled").mkdir(parents=True)
        (runs / folder / "sampled/summary.json").write_text("{}")
    for model in ("stage2", "stage3", "round2/stage3"):
        (runs / model).mkdir()
    base = tmp_path / "base"
    base.mkdir()
    rows = tmp_path / "rows.json"
    return Chain(Profile(str(base), rows, [rows], [rows], runs, rounds=2), 1)


def compared(
    chain: Chain, fell: list[str], after: float = 0.7, name: str = "check_stage3"
) -> Records:
    """The record of a comparison that has just ended; accuracy was 0.8 before."""
    records = Records(chain.profile.runs)
    step: Step = next(step for step in chain.steps() if step.name == name)
    records.start(step)
    assert step.done_file
    accuracy = {"before": 0.8, "after": after, "difference": after - 0.8}
    step.done_file.write_text(json.dumps({"fell": fell, "figures": {"accuracy": accuracy}}))
    records.finish(step, 1.0)
    return records


def link(chain: Chain) -> str:
    return str((chain.profile.runs / "result").readlink())


def test_stage_3_is_the_result_where_it_is_not_worse(chain: Chain) -> None:
    (outcome,) = set_results(chain, compared(chain, []))
    assert (outcome.told, outcome.worse) == ("", False)
    assert link(chain) == "stage3"


def test_stage_2_is_the_result_where_stage_3_is_worse(chain: Chain) -> None:
    set_results(chain, compared(chain, []))
    (outcome,) = set_results(chain, compared(chain, ["accuracy", "coherent"]))
    assert outcome.worse
    assert "stage3 writes worse than " in outcome.told
    assert "accuracy, coherent fell (accuracy 80.0 -> 70.0" in outcome.told
    assert link(chain) == "stage2"


def test_a_later_round_is_the_result_where_validation_rose(chain: Chain) -> None:
    compared(chain, [], after=0.9)
    assert [outcome.told for outcome in set_results(chain, compared(chain, [], after=0.9))] == [""]
    assert link(chain) == "stage3"  # the second round is not compared yet
    records = compared(chain, [], after=0.81, name="round2/check_stage3")
    assert [outcome.told for outcome in set_results(chain, records)] == [""]
    assert link(chain) == "round2/stage3"
    assert (chain.profile.runs / "result").is_dir()


@pytest.mark.parametrize(
    ("fell", "after", "told"),
    [
        (["accuracy"], 0.7, "writes worse than .*stage3: accuracy fell .accuracy 80.0 -> 70.0"),
        (["coherent"], 0.9, "writes worse than .*stage3: coherent fell .accuracy 80.0 -> 90.0"),
        ([], 0.8, "is no better than .*stage3 .accuracy 80.0 -> 80.0"),
    ],
)
def test_a_later_round_without_a_gain_is_told_and_is_no_failure(
    chain: Chain, fell: list[str], after: float, told: str
) -> None:
    compared(chain, [], after=0.9)
    records = compared(chain, fell, after, "round2/check_stage3")
    (outcome,) = set_results(chain, records)
    assert re.search(f"round2/stage3 {told}", outcome.told)
    assert not outcome.worse
    assert link(chain) == "stage3"


def test_a_round_after_one_that_was_no_gain_does_not_count(chain: Chain) -> None:
    """Its results are of an earlier start, when the round before was a gain."""
    compared(chain, [], after=0.9, name="round2/check_stage3")
    (outcome,) = set_results(chain, compared(chain, [], after=0.8))
    assert (link(chain), outcome.told) == ("stage3", "")


def test_models_that_changed_since_have_no_result(chain: Chain) -> None:
    records = compared(chain, [])
    set_results(chain, records)
    (chain.profile.runs / "eval_stage3/sampled/summary.json").write_text('{"new": 1}')
    assert set_results(chain, records) == []
    assert not (chain.profile.runs / "result").exists()


def test_what_is_no_link_is_not_touched(chain: Chain) -> None:
    (chain.profile.runs / "result").mkdir()
    with pytest.raises(UserError, match="result is no link of this chain"):
        set_results(chain, compared(chain, []))
    assert (chain.profile.runs / "result").is_dir()
