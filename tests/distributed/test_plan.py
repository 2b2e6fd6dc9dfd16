"""The folders of the shares: what is remembered, and what counts as finished."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from cot_reward.distributed.plan import Growth, Plan
from cot_reward.distributed.worker import check_shared
from cot_reward.errors import UserError
from cot_reward.inference.settings import InferenceSettings
from cot_reward.settings import parse


@pytest.fixture
def settings(tmp_path: Path) -> InferenceSettings:
    (tmp_path / "data.json").write_text("[]")
    return InferenceSettings([tmp_path / "data.json"], tmp_path / "out", labels=["0=1", "1=2"])


def finish(plan: Plan, *shares: int) -> None:
    for share in shares:
        plan.share(share).mkdir(exist_ok=True)
        (plan.share(share) / "summary.json").write_text("{}")


def missing(settings: InferenceSettings, wanted: int | None = None) -> list[int]:
    with Plan(settings) as plan:
        return plan.cut(wanted, workers=2, comparisons=1000)


def test_finished_shares_are_not_asked_again_by_the_same_command(settings):
    with Plan(settings) as plan:
        assert plan.cut(3, 2, 1000) == [1, 2, 3]
        finish(plan, 1, 3)
    assert missing(settings) == [2]
    # Another server, or another speed, changes no row.
    assert missing(replace(settings, base_url=["http://a:1/v1"], concurrency="7")) == [2]
    with pytest.raises(UserError, match="has 3 shares, and --shares is 4; leave --shares out"):
        missing(settings, 4)


@pytest.mark.parametrize("change", [{"num_samples": 9}, {"retry_failed": True}])
def test_other_settings_ask_every_share_what_is_missing(settings, change):
    with Plan(settings) as plan:
        plan.cut(2, 2, 1000)
        finish(plan, 1, 2)
    assert missing(settings) == []
    assert missing(replace(settings, **change)) == [1, 2]


def test_failures_are_retried_as_often_as_the_user_asks(settings):
    retry = replace(settings, retry_failed=True)
    with Plan(retry) as plan:
        plan.cut(3, 2, 1000)
        finish(plan, 1, 2, 3)
        for share, failed in ((1, 4), (2, 0), (3, 1)):
            account = {"account": {"failed": failed}}
            (plan.share(share) / "summary.json").write_text(json.dumps(account))
    # Not joined yet: the retry goes on, and nothing is asked twice.
    assert missing(retry) == []
    with Plan(retry) as plan:
        plan.gathered()
    assert missing(settings) == [1, 2, 3]
    with Plan(settings) as plan:
        finish(plan, 1, 2, 3)
    assert missing(retry) == [1, 2, 3]


def test_a_retry_after_the_end_asks_the_shares_with_failures(settings):
    retry = replace(settings, retry_failed=True)
    with Plan(retry) as plan:
        plan.cut(3, 2, 1000)
        for share, failed in ((1, 4), (2, 0), (3, 1)):
            finish(plan, share)
            account = {"account": {"failed": failed}}
            (plan.share(share) / "summary.json").write_text(json.dumps(account))
        plan.gathered()
    assert missing(retry) == [1, 3]
    # It was killed: the shares that have finished since are not asked once more.
    with Plan(retry) as plan:
        finish(plan, 1)
    assert missing(retry) == [3]


def test_other_data_ask_every_share_what_is_missing(settings):
    with Plan(settings) as plan:
        plan.cut(2, 2, 1000)
        finish(plan, 1, 2)
    settings.data[0].write_text("[{}]")
    assert missing(settings) == [1, 2]


@pytest.mark.parametrize(("comparisons", "shares"), [(10**6, 8), (170, 3), (20, 1)])
def test_the_number_of_shares_follows_workers_and_comparisons(settings, comparisons, shares):
    with Plan(settings) as plan:
        assert plan.cut(None, 2, comparisons) == list(range(1, shares + 1))


def test_the_client_reads_the_settings_as_they_were_given(settings, tmp_path):
    given = replace(settings, model="m", chat_template_kwargs='{"a": 1}', exclude=["x*"], top_p=0.5)
    (tmp_path / "x.json").write_text("[]")
    given = replace(given, exclude=[str(tmp_path / "x.json")], until="off", media_root=tmp_path)
    with Plan(given) as plan:
        plan.cut(1, 1, 100)
        argv = ["--config", str(plan.config), "--out", str(given.out)]
        assert parse(InferenceSettings, "", argv=argv) == given
        assert "out" not in yaml.safe_load(plan.config.read_text())


def test_one_command_works_in_a_folder(settings):
    with (
        Plan(settings),
        pytest.raises(UserError, match=r"another infer_ray\.py works in this folder"),
    ):
        Plan(settings)
    with Plan(settings):
        pass


def test_a_machine_without_the_folder_or_without_its_locks_is_refused(settings):
    with Plan(settings) as plan:
        path = plan.folder / "driver.lock"
        check_shared(path, plan.token, "node1")
        with pytest.raises(
            UserError, match=r"node1: .* is not the driver's; --out must be on stor"
        ):
            check_shared(path, "other", "node1")
        with pytest.raises(UserError, match="No such file or directory; --out must be on storage"):
            check_shared(path.with_name("missing"), plan.token, "node1")
    with pytest.raises(UserError, match="locks do not reach from machine to machine"):
        check_shared(path, plan.token, "node1")


def test_lines_are_counted_as_they_come(settings):
    with Plan(settings) as plan:
        plan.cut(2, 1, 100)
        growth = Growth(plan)
        assert growth.lines(1) == 0
        plan.share(1).mkdir()
        journal = plan.share(1) / "journal.jsonl"
        line = json.dumps({"text": "x" * 100}) + "\n"
        journal.write_text(2 * line + line[:50])
        assert growth.lines(1) == 2
        # The next start cuts the torn line off.
        journal.write_text(4 * line)
        assert growth.lines(1) == 4
        assert growth.total == 4
