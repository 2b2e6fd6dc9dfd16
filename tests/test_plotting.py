"""Plots of training logs."""

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from cot_reward import plotting
from PIL import Image


def test_curves_read_both_trainers_logs(tmp_path: Path) -> None:
    theirs = [{"current_steps": 5, "loss": 2.0}, {"current_steps": 10, "loss": float("nan")}]
    assert plotting.series(theirs, "loss") == ([5.0], [2.0])
    ours = [{"step": 1, "loss": 2.0}, {"step": 1, "eval_loss": 1.0}, {"step": 2, "loss": 1.0}]
    assert plotting.series(ours, "loss") == ([1.0, 2.0], [2.0, 1.0])
    assert plotting.smoothed([3.0, 3.0, 3.0]) == pytest.approx([3.0, 3.0, 3.0])
    target = tmp_path / "curves/loss.png"
    assert plotting.plot_log(ours, [plotting.Panel("", {"loss": "loss"})], target, "loss")
    assert Image.open(target).width > 500
    other = [plotting.Panel("", {"other": "other"})]
    assert not plotting.plot_log(ours, other, tmp_path / "none.png", "none")
    assert not (tmp_path / "none.png").exists()


def dpo_history(steps: int) -> list[dict[str, Any]]:
    """A log of a mixed loss, with held-out values once."""
    keys = ("loss", "loss/sigmoid", "loss/sft", "rewards/chosen", "rewards/rejected")
    keys += ("rewards/margins", "rewards/accuracies")
    history = [
        {"step": step} | {key: float(step + place) for place, key in enumerate(keys)}
        for step in range(1, steps + 1)
    ]
    return [*history, {"step": steps} | {f"eval_{key}": 0.25 for key in keys}]


def drawn(plot: plotting.LogPlot, history: list[dict[str, Any]], tmp_path: Path) -> list[Any]:
    """The axes of a plot, as matplotlib has them when it writes the file."""
    kept: list[Any] = []
    with mock.patch.object(
        plotting, "save_figure", side_effect=lambda figure, *_: kept.append(figure)
    ):
        assert plotting.plot_log(history, plot.panels, tmp_path / "plot.png", plot.title)
    return list(kept[0].axes)


def legend(axes: Any) -> list[str]:
    return list(axes.get_legend_handles_labels()[1])


def test_the_plots_of_dpo(tmp_path: Path) -> None:
    history = dpo_history(8)
    plots = {plot.name: plot for plot in plotting.dpo_plots(history)}
    axes = {
        name: drawn(plots[name], history, tmp_path)
        for name in ("loss", "rewards", "reward_accuracy")
    }
    # Each term of the loss has axes of its own, apart from the weighted sum.
    assert [part.get_ylabel() for part in axes["loss"]] == [
        "weighted sum", "sigmoid, unweighted", "sft, unweighted",
    ]  # fmt: skip
    assert [list(line.get_ydata()) for line in axes["loss"][2].lines] == [
        [float(step + 2) for step in range(1, 9)], [0.25],
    ]  # fmt: skip
    # Both rewards are in one plot, with the margin between them.
    reward, margin = axes["rewards"]
    labels = ["chosen", "rejected", "margin", "chosen, held out", "rejected, held out"]
    assert sorted(legend(reward)) == sorted(labels)
    assert len(reward.collections) == 1
    assert margin.get_ylabel() == "margin"
    (accuracy,) = axes["reward_accuracy"]
    chance = accuracy.lines[0]
    assert (set(chance.get_ydata()), chance.get_label()) == ({0.5}, "chance: 0.5")
    groups = plots["reward_accuracy_by_group"].panels
    assert not plotting.plot_log(history, groups, tmp_path / "none.png", "")


def test_answer_and_reasoning_have_lines_of_their_own(tmp_path: Path) -> None:
    history = [
        {
            "step": step,
            "answer_rewards/margins": 0.2,
            "reasoning_rewards/margins": 0.7,
            "answer_rewards/margins_answer_1": 0.9,
            "answer_rewards/margins_answer_2": 0.1,
            "answer_logps/chosen": -0.5,
            "agreement/coherent": 1.0,
        }
        for step in (1, 2)
    ]
    plots = {plot.name: plot for plot in plotting.dpo_plots(history)}
    margin, answer = drawn(plots["answer_and_reasoning"], history, tmp_path)
    assert legend(margin) == ["answer", "reasoning"]
    assert [list(line.get_ydata()) for line in margin.lines[1:]] == [[0.2] * 2, [0.7] * 2]
    assert answer.get_ylabel() == "log-prob per token, answer"
    (by_position,) = drawn(plots["answer_by_position"], history, tmp_path)
    assert legend(by_position) == ["chosen answer 1", "chosen answer 2"]
    (agreement,) = drawn(plots["agreement"], history, tmp_path)
    assert [line.get_label() for line in agreement.lines[1:]] == ["coherent"]


def test_few_points_are_marked_and_many_smoothed(tmp_path: Path) -> None:
    def train_lines(steps: int) -> list[Any]:
        history = dpo_history(steps)
        plot = plotting.dpo_plots(history)[0]
        return [
            line for line in drawn(plot, history, tmp_path)[0].lines if len(line.get_xdata()) > 1
        ]

    (few,) = train_lines(29)
    assert few.get_marker() == "o"
    raw, smooth = train_lines(30)
    assert (raw.get_marker(), smooth.get_marker()) == ("None", "None")
    assert smooth.get_label() == "loss, smoothed"


def test_one_loss_has_one_panel() -> None:
    history = [{"step": 1, "loss": 1.0}]
    (panel,) = plotting.dpo_plots(history)[0].panels
    assert panel.ylabel == "loss"
