"""Which steps run again, and what happens to their earlier results."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from cot_reward.chain.state import Records
from cot_reward.chain.step import Step
from cot_reward.errors import UserError


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A model folder, a YAML and two data files."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    (tmp_path / "model/model.safetensors").write_bytes(bytes(1000))
    (tmp_path / "settings.yaml").write_text("rate: 1\n")
    (tmp_path / "rows.jsonl").write_text("{}\n")
    (tmp_path / "more.jsonl").write_text("{}\n")
    return tmp_path


def training(world: Path, **flags: str) -> Step:
    out = world / "runs/stage1"
    return Step(
        "stage1", "training", ("train",),
        (world / "settings.yaml", world / "model", world / "rows.jsonl"), flags, out,
        out / "summary.json", trains="sft",
    )  # fmt: skip


def done(step: Step, records: Records) -> None:
    """What the chain does for a step that ends well."""
    records.start(step)
    assert step.out
    assert step.done_file
    step.out.mkdir(parents=True, exist_ok=True)
    step.done_file.write_text("{}")
    records.finish(step, 1.5)


def test_a_finished_step_is_done_also_for_the_next_start(world: Path) -> None:
    step, records = training(world, seed="0"), Records(world / "runs")
    assert records.find(step).condition == "new"
    done(step, records)
    assert Records(world / "runs").find(step).condition == "done"
    assert Records(world / "runs").seconds([step]) == [{"step": "stage1", "seconds": 1.5}]


def change_weights(world: Path) -> None:
    (world / "model/model.safetensors").write_bytes(b"1" + bytes(999))


def change_rows(world: Path) -> None:
    (world / "rows.jsonl").write_text("{}\n{}\n")


def change_settings(world: Path) -> None:
    (world / "settings.yaml").write_text("rate: 2\n")


def remove_rows(world: Path) -> None:
    (world / "rows.jsonl").unlink()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (change_weights, "model has changed"),
        (change_rows, "rows.jsonl has changed"),
        (change_settings, "settings.yaml has changed"),
        (remove_rows, "rows.jsonl is missing"),
    ],
)
def test_a_changed_input_makes_a_step_anew(
    world: Path, change: Callable[[Path], None], reason: str
) -> None:
    step, records = training(world), Records(world / "runs")
    done(step, records)
    change(world)
    found = records.find(step)
    assert (found.condition, found.reason) == ("anew", f"{world}/{reason}")


def test_another_flag_is_named_with_both_values(world: Path) -> None:
    records = Records(world / "runs")
    done(training(world, seed="0"), records)
    found = records.find(training(world, seed="1"))
    assert (found.condition, found.reason) == ("anew", "seed was 0 and is 1")
    assert records.find(training(world)).reason == "--seed is no longer used"


def test_a_comment_in_a_yaml_and_another_time_of_a_file_change_nothing(world: Path) -> None:
    step, records = training(world), Records(world / "runs")
    done(step, records)
    (world / "settings.yaml").write_text("# slower\nrate: 1\n")
    change_rows(world)
    (world / "rows.jsonl").write_text("{}\n")
    assert records.find(step).condition == "done"


def test_an_input_that_changes_while_a_step_runs_makes_it_run_again(world: Path) -> None:
    step, records = training(world), Records(world / "runs")
    records.start(step)
    change_rows(world)
    assert step.out
    assert step.done_file
    step.out.mkdir(parents=True)
    step.done_file.write_text("{}")
    records.finish(step, 1.0)
    assert records.find(step).condition == "anew"


def test_a_stopped_step_continues_unless_its_inputs_have_changed(world: Path) -> None:
    step, records = training(world), Records(world / "runs")
    records.start(step)
    assert records.find(step).condition == "continue"
    change_settings(world)
    assert records.find(step).condition == "anew"


def test_a_lost_result_is_made_again(world: Path) -> None:
    step, records = training(world), Records(world / "runs")
    done(step, records)
    assert step.done_file
    step.done_file.unlink()
    found = records.find(step)
    assert found.condition == "continue"
    assert str(step.done_file) in found.reason


def test_a_result_of_unknown_origin_is_foreign(world: Path) -> None:
    step, records = training(world), Records(world / "runs")
    assert step.out
    step.out.mkdir(parents=True)
    assert records.find(step).condition == "new"
    (step.out / "config.json").write_text("{}")
    assert records.find(step).condition == "foreign"


def test_more_data_or_samples_extend_an_inference_and_another_model_does_not(world: Path) -> None:
    def inference(samples: str, *data: str) -> Step:
        out = world / "runs/infer"
        return Step(
            "infer", "inference", ("client",), (world / "model",), {"temperature": "1"}, out,
            out / "summary.json", tuple(world / name for name in data), {"samples": samples},
            model=world / "model",
        )  # fmt: skip

    records = Records(world / "runs")
    done(inference("2", "rows.jsonl"), records)
    found = records.find(inference("4", "rows.jsonl", "more.jsonl"))
    assert found.condition == "continue"
    assert found.reason == f"{world}/more.jsonl is new; samples was 2 and is 4"
    change_weights(world)
    assert records.find(inference("4", "rows.jsonl")).condition == "anew"


def test_pictures_count_by_name_and_size(world: Path) -> None:
    pictures = world / "pictures"
    pictures.mkdir()
    (pictures / "a.png").write_bytes(b"123")
    out = world / "runs/infer"
    step = Step("infer", "", ("client",), (pictures,), out=out, done_file=out / "summary.json")
    records = Records(world / "runs")
    done(step, records)
    assert records.find(step).condition == "done"
    (pictures / "a.png").write_bytes(b"1234")
    assert records.find(step).condition == "anew"


def test_an_earlier_result_is_kept_aside(world: Path) -> None:
    step, records = training(world), Records(world / "runs")
    done(step, records)
    assert records.set_aside(step) == str(world / "runs/replaced/stage1")
    assert (world / "runs/replaced/stage1/summary.json").is_file()
    assert step.out
    assert not step.out.exists()
    assert records.set_aside(step) == ""


def test_a_missing_input_is_named_before_the_start(world: Path) -> None:
    step, records = training(world), Records(world / "runs")
    remove_rows(world)
    with pytest.raises(UserError, match=r"stage1: .*rows\.jsonl: no such file or folder"):
        records.start(step)


def test_a_broken_record_says_what_to_do(world: Path) -> None:
    step, records = training(world), Records(world / "runs")
    records.start(step)
    record = world / "runs/.chain/stage1.json"
    assert json.loads(record.read_text())["step"] == "stage1"
    record.write_text("{")
    with pytest.raises(UserError, match=r"stage1\.json: cannot be read: .*remove it"):
        records.find(step)
