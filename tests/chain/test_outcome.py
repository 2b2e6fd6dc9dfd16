"""Which model is the result of a run, after stage 3 was compared with stage 2."""

import json
from pathlib import Path

import pytest
from cot_reward.chain.outcome import set_results
from cot_reward.chain.settings import Profile
from cot_reward.chain.state import Records
from cot_reward.chain.step import Step
from cot_reward.chain.steps import Chain
from cot_reward.errors import UserError

ACCURACY = {"before": 0.8, "after": 0.7}


@pytest.fixture
def chain(tmp_path: Path) -> Chain:
    runs = tmp_path / "runs"
    (runs / "stage2").mkdir(parents=True)
    (runs / "stage3").mkdir()
    for stage in ("stage2", "stage3"):
        (runs / f"eval_{stage}/sampled").mkdir(parents=True)
        (runs / f"eval_{stage}/sampled/summary.json").write_text("{}")
    base = tmp_path / "base"
    base.mkdir()
    rows = tmp_path / "rows.json"
    return Chain(Profile(str(base), rows, [rows], [rows], runs), 1)


def compared(chain: Chain, fell: list[str]) -> Records:
    """The record of a comparison that has just ended."""
    records = Records(chain.profile.runs)
    step: Step = next(step for step in chain.steps() if step.name == "check_stage3")
    records.start(step)
    assert step.done_file
    step.done_file.write_text(json.dumps({"fell": fell, "figures": {"accuracy": ACCURACY}}))
    records.finish(step, 1.0)
    return records


def test_stage_3_is_the_result_where_it_is_not_worse(chain: Chain) -> None:
    assert set_results(chain, compared(chain, [])) == []
    link = chain.profile.runs / "result"
    assert str(link.readlink()) == "stage3"


def test_stage_2_is_the_result_where_stage_3_is_worse(chain: Chain) -> None:
    set_results(chain, compared(chain, []))
    (told,) = set_results(chain, compared(chain, ["accuracy", "coherent"]))
    assert "accuracy, coherent fell (accuracy 80.0 -> 70.0" in told
    assert str((chain.profile.runs / "result").readlink()) == "stage2"


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
