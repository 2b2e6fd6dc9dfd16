"""Sampling, the judge's rewards, and runs that go on."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from cot_reward.errors import UserError
from cot_reward.grpo import run
from cot_reward.training import rows as training_rows
from helpers.dpo import save_model
from helpers.grpo import trainer_for
from safetensors.torch import load_file
from torch import equal
from transformers import TrainerCallback

SAVING = ("--save_strategy", "steps", "--save_steps", "1")
# Eight questions in batches of four: the third step begins the second epoch.
THREE = ("--max_steps", "3", "--learning_rate", "3e-3")


def logged(trainer: Any, key: str) -> list[float]:
    return [entry[key] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.slow
def test_the_judges_reward_of_sampled_texts_rises(
    speaker: Path, comparisons: Path, tmp_path: Path
) -> None:
    """All first images are better: a model that answers either learns to answer 1."""
    flags = ("--max_steps", "10", "--learning_rate", "3e-3")
    built = trainer_for(speaker, comparisons, tmp_path / "out", *flags)
    before = {name: weight.clone() for name, weight in built[0].model.state_dict().items()}
    run.train(*built)
    rewards = logged(built[0], "rewards/judged/mean")
    assert 0.05 < rewards[0] < 0.8
    assert sum(rewards[-3:]) / 3 > rewards[0] + 0.15
    # `reward` is what is learned from: without --reward_format it is the judge's alone.
    assert logged(built[0], "reward") == rewards
    assert max(logged(built[0], "rewards/well_formed/mean")) > 0.5
    after = built[0].model.state_dict()
    assert any(not equal(before[name], after[name]) for name in before)


@pytest.mark.slow
def test_the_form_has_its_reward_when_asked(
    speaker: Path, comparisons: Path, tmp_path: Path
) -> None:
    flags = ("--max_steps", "1", "--reward_format", "0.5")
    built = trainer_for(speaker, comparisons, tmp_path / "out", *flags)
    run.train(*built)
    (total,), (judged,), (formed,) = (
        logged(built[0], key)
        for key in ("reward", "rewards/judged/mean", "rewards/well_formed/mean")
    )
    assert total == pytest.approx(judged + 0.5 * formed)
    assert formed > judged


@pytest.mark.slow
def test_a_model_that_answers_nothing_is_no_training(
    comparisons: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    base = save_model(tmp_path_factory.mktemp("random"))
    built = trainer_for(base, comparisons, tmp_path / "out", "--max_steps", "3")
    with pytest.raises(UserError, match="0 of the first 64 texts have a readable answer") as caught:
        run.train(*built)
    assert "--max_completion_length 40" in str(caught.value) or "--template" in str(caught.value)
    assert not (tmp_path / "out/summary.json").exists()
    run.train(*trainer_for(base, comparisons, tmp_path / "b", "--max_steps", "3", "--min_parsed=0"))
    assert (tmp_path / "b/summary.json").exists()


def test_a_cut_text_and_a_wrong_one_have_no_reward(
    speaker: Path, comparisons: Path, tmp_path: Path
) -> None:
    trainer = trainer_for(speaker, comparisons, tmp_path / "out", "--max_steps", "1")[0]
    end, other = trainer.eos_token_ids[0], 5
    form = "<think>{}</think><answer>Image {} is better</answer>"
    contradicted = form.format("Total score:\nImage 1: 1+1=2\nImage 2: 2+2=4", 1)
    texts = [form.format("Red", 1), form.format("Red", 1), form.format("Red", 2), contradicted, "?"]
    called = {
        "prompts": [None] * 5,
        "completions": [[{"role": "assistant", "content": text}] for text in texts],
        "completion_ids": [[other, end], [other, other], [other, end], [other, end], [end]],
        "task": ["image_generation"] * 5,
        "label": [1] * 5,
    }
    assert trainer.judged(**called) == [1, 0, 0, 0, 0]
    assert trainer.well_formed(**called) == [1, 0, 1, 1, 0]


def test_an_image_is_opened_once_a_batch(
    speaker: Path, comparisons: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    load = training_rows.load_image

    def counting(path: Path) -> Any:
        opened.append(path.name)
        return load(path)

    trainer = trainer_for(speaker, comparisons, tmp_path / "out", "--max_steps", "1")[0]
    asked = [index for index in range(3) for _ in range(8)]
    monkeypatch.setattr(training_rows, "load_image", counting)
    batch = trainer.data_collator([trainer.train_dataset[index] for index in asked])
    assert len({row["prompt"][0]["content"][-1]["text"] for row in batch}) == 3
    assert sorted(opened) == ["blue.png", "red.png", "white.png"]
    assert [image.size for image in batch[0]["images"]] == [(56, 56)] * 2


def test_a_batch_has_all_texts_of_a_question(
    speaker: Path, comparisons: Path, tmp_path: Path
) -> None:
    trainer = trainer_for(speaker, comparisons, tmp_path / "out", "--max_steps", "1")[0]
    batch = next(iter(trainer.get_train_dataloader()))
    prompts = Counter(row["prompt"][0]["content"][-1]["text"] for row in batch)
    assert list(prompts.values()) == [8] * 4
    assert all(row["label"] == 1 for row in batch)


def stop_at(step: int) -> TrainerCallback:
    """Ctrl-C before the step that follows this one."""

    class Stops(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == step:
                raise KeyboardInterrupt

    return Stops()


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [1, 2])
def test_a_stopped_run_ends_with_the_weights_of_a_whole_one(
    speaker: Path,
    comparisons: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    stopped: int,
) -> None:
    """Also where it goes on in its second epoch."""
    run.train(*trainer_for(speaker, comparisons, tmp_path / "whole", *THREE, *SAVING))
    out = tmp_path / "out"
    built = trainer_for(speaker, comparisons, out, *THREE, *SAVING)
    built[0].add_callback(stop_at(stopped))
    with pytest.raises(KeyboardInterrupt):
        run.train(*built)
    assert f"goes on from step {stopped}" in capsys.readouterr().err
    resume = ("--resume_from_checkpoint", "true")
    run.train(*trainer_for(speaker, comparisons, out, *THREE, *SAVING, *resume))
    whole, resumed = (
        load_file(folder / "model.safetensors") for folder in (tmp_path / "whole", out)
    )
    assert whole.keys() == resumed.keys()
    for name, weight in whole.items():
        assert equal(weight, resumed[name]), name


def test_another_runs_result_is_not_replaced(
    speaker: Path, comparisons: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    flags = ("--max_steps", "1")
    run.train(*trainer_for(speaker, comparisons, out, *flags))
    for changed, difference in [
        (("--reward_format", "1"), "reward_format is 0.0 there and 1.0 here"),
        (("--temperature", "0.5"), "temperature is 1.0 there and 0.5 here"),
        (("--orders", "swapped"), r"data \(sha256\) is"),
        (("--learning_rate", "1e-6"), "learning_rate is 0.0001 there"),
    ]:
        with pytest.raises(UserError, match=f"has the result of another run.*{difference}"):
            trainer_for(speaker, comparisons, out, *flags, *changed)
    trainer_for(speaker, comparisons, out, *flags)


@pytest.mark.slow
def test_a_time_limit_ends_the_run_and_saves_it(
    speaker: Path, comparisons: Path, tmp_path: Path
) -> None:
    flags = ("--num_train_epochs", "50", "--max_minutes", "0.0001")
    built = trainer_for(speaker, comparisons, tmp_path / "out", *flags)
    run.train(*built)
    assert built[0].state.global_step == 1
    assert (tmp_path / "out/model.safetensors").exists()
    assert "1 of 100 steps" in (tmp_path / "out/README.md").read_text()
