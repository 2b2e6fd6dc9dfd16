"""scripts/compare.py: alignment, paired differences, tests, published figures."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cot_reward import settings
from cot_reward.errors import UserError
from cot_reward.evaluation.answers import MISSING, read_answers
from cot_reward.evaluation.compare import Run, compare, read_runs
from cot_reward.evaluation.comparison_table import comparison_table, contradiction
from cot_reward.evaluation.strict import OVERALL
from cot_reward.report.run import write_comparison
from cot_reward.report.settings import CompareSettings
from cot_reward.settings import read_yaml
from cot_reward.store import without_nan
from helpers.benchmarks import answers_of, random_answers
from helpers.environments import REPO
from helpers.evaluation import RIGHT, TURNED, WRONG, judged_run
from scipy.stats import binomtest
from statsmodels.stats.multitest import multipletests


def of(answers: Any, model: str) -> Run:
    return Run(model, "rows", [Path(model)], replace(answers, model=model))


def test_a_difference_is_paired_and_tested() -> None:
    weak, strong = random_answers(0, 200, skill=0.6), random_answers(1, 200, skill=0.85)
    found = compare([of(weak, "weak"), of(strong, "strong"), of(strong, "same")])["rows"]
    first, _, none = found["differences"]
    shares = {name: one["groups"][OVERALL]["accuracy"]["share"] for name, one in
              found["models"].items()}  # fmt: skip
    overall = first["groups"][OVERALL]
    assert overall["difference"] == pytest.approx(shares["strong"] - shares["weak"])
    assert 0 < overall["low"] < overall["difference"] < overall["high"]
    # Twice the standard error and more, less than the difference that is there.
    assert 0 < overall["detectable"] < overall["difference"]
    assert first["p"] == pytest.approx(
        binomtest(first["gained"], first["gained"] + first["lost"]).pvalue
    )
    assert first["p_holm"] < 0.001
    assert (none["groups"][OVERALL]["difference"], none["gained"], none["p"]) == (0, 0, 1)
    ps = [entry["p"] for entry in found["differences"]]
    assert [entry["p_holm"] for entry in found["differences"]] == pytest.approx(
        multipletests(ps, method="holm")[1]
    )


def test_a_table_by_hand() -> None:
    before = answers_of([[[1], [1]], [[2], [2]], [[2], [2]], [[1], [2]]], groups=["a", "b"])
    after = answers_of([[[1], [1]], [[1], [1]], [[1], [1]], [[2], [2]]], groups=["a", "b"])
    found = compare([of(before, "before"), of(after, "after")])["rows"]
    (difference,) = found["differences"]
    # An undecided vote is not right: three of four are right after, one before.
    assert (difference["gained"], difference["lost"], difference["p"]) == (2, 0, 0.5)
    assert difference["groups"]["a"]["difference"] == 0.5
    assert difference["groups"]["b"]["difference"] == pytest.approx((1 - 0.5) / 2)
    table = comparison_table({"rows": found})
    assert "| before | after | +50.0 [" in table
    assert "| 2 | 0 | 0.5000 | 0.5000 |" in table


def test_items_that_one_model_lacks_are_an_error_or_left_out_of_all() -> None:
    one, other = random_answers(0, 30), random_answers(1, 30)
    picks = other.picks.copy()
    picks[3] = MISSING
    lacking = replace(other, picks=picks)
    with pytest.raises(UserError, match=r"of 30 items there is no text of other 1; ask again"):
        compare([of(one, "one"), of(lacking, "other")])
    found = compare([of(one, "one"), of(lacking, "other")], common=True)["rows"]
    assert (found["left_out"], found["models"]["one"]["items"]) == (1, 29)
    assert "**1 items are left out**" in comparison_table({"rows": found})


def test_other_labels_are_no_common_benchmark() -> None:
    one, other = answers_of([[[1], [1]]] * 3), answers_of([[[1], [1]]] * 3, [1, 2, 1])
    with pytest.raises(UserError, match="item item 1 is not the same comparison in both"):
        compare([of(one, "one"), of(other, "other")])


def test_folders_of_the_client_are_compared_by_their_names(tmp_path: Path) -> None:
    def run(name: str, verdicts: Any, seed: int = 0) -> Path:
        folder = judged_run(tmp_path / name, verdicts)
        summary = {"settings": {"num_samples": 1, "model": "m", "seed": seed, "until": "off"}}
        (folder / "summary.json").write_text(json.dumps(summary))
        return folder

    before = run("before", [WRONG, TURNED, RIGHT, WRONG])
    after = run("after", [RIGHT, RIGHT, RIGHT, TURNED])
    again = run("again", [RIGHT, RIGHT, WRONG, TURNED], seed=1)
    answers = read_answers(before)
    picks = dict(zip([i.name for i in answers.items], answers.picks[:, :, 0].tolist(), strict=True))
    wanted = [[2, 2], [1, 2], [1, 1], [2, 2]]
    assert picks == {f"comparison {number}": both for number, both in enumerate(wanted)}
    out = tmp_path / "out"
    argv = [str(before), str(after), "--out", str(out)]
    table = write_comparison(settings.parse(CompareSettings, "", argv=argv))
    assert table == (out / "comparison.md").read_text() + f"\n{out / 'report.html'}\n"
    found = json.loads((out / "comparison.json").read_text())["rows"]
    assert found["models"]["before"]["groups"][OVERALL]["accuracy"]["share"] == 3 / 8
    assert found["differences"][0]["groups"][OVERALL]["difference"] == pytest.approx(4 / 8)
    # Two seeds of one model are one run with the samples of both.
    runs = read_runs([before, after, again], ["before", "after", "after"])
    assert [(one.model, one.answers.samples) for one in runs] == [("before", 1), ("after", 2)]
    run("short", [RIGHT])
    with pytest.raises(UserError, match="runs of 'x' about different items"):
        read_runs([before, tmp_path / "short"], ["x", "x"])
    with pytest.raises(UserError, match="has 1 names for 2 runs"):
        read_runs([before, after], ["x"])
    (before / "summary.json").unlink()
    with pytest.raises(UserError, match="this inference has not finished"):
        read_runs([before])


def test_published_figures_are_shown_with_what_does_not_follow() -> None:
    published = read_yaml(REPO / "configs/published.yaml")
    figure = published["vl-rewardbench"][0]
    assert contradiction(figure["shares"], figure["items"]) == (
        "overall 73.8 does not follow from the groups (71.8)"
    )
    assert contradiction({"a": 50.0, "b": 70.0, "overall": 65.0}, {"a": 1, "b": 3}) == ""
    found = compare([of(random_answers(0), "one")])
    table = comparison_table({"vl-rewardbench test": found["rows"]}, published)
    assert "overall 73.8 does not follow from the groups (71.8)" in table
    for figures in published.values():
        for one in figures:
            assert one["source"]
            assert all(0 < share < 100 for share in one["shares"].values())
            assert set(one) <= {"model", "base", "source", "items", "shares"}


def test_intervals_of_few_clusters_are_warned_of() -> None:
    picks = np.random.default_rng(0).integers(1, 3, (200, 2, 1))
    many = answers_of(picks)
    few = answers_of(picks, clusters=[f"{n % 3}" for n in range(200)])
    told = "The items are of 3 clusters only"
    assert told in comparison_table(compare([of(few, "one")]))
    assert "clusters only" not in comparison_table(compare([of(many, "one")]))


@pytest.mark.filterwarnings("error")
def test_items_of_which_nothing_can_be_said_have_no_figures() -> None:
    """Texts without any answer, and ties alone."""
    nothing = np.zeros((4, 2, 2), int)
    unread = compare([of(answers_of(nothing), "one"), of(answers_of(nothing), "other")])["rows"]
    assert unread["models"]["one"]["groups"][OVERALL]["accuracy"]["share"] == 0
    assert unread["models"]["one"]["by_votes"]["2"]["undecided"] == 1
    ties = compare([of(answers_of(nothing, [0] * 4), name) for name in ("one", "other")])
    table = comparison_table(ties)
    assert "4 items, 4 ties" in table
    assert "nan" not in table
    assert without_nan(ties)["rows"]["models"]["one"]["groups"][OVERALL]["vote"]["share"] is None


def test_four_models_are_compared_in_seconds() -> None:
    """No assertion about time: tests/bench has the figures. The arrays alone are large here."""
    runs = [of(random_answers(seed, 600, 8, skill=0.6 + 0.05 * seed), f"m{seed}")
            for seed in range(4)]  # fmt: skip
    found = compare(runs)["rows"]
    assert len(found["differences"]) == 6
    assert list(found["models"]["m0"]["by_votes"]) == ["1", "2", "4", "8"]
    right = [found["models"]["m3"]["by_votes"][k]["right"] for k in ("1", "8")]
    assert right[1] > right[0] + 0.1
    assert not np.isnan(right).any()
