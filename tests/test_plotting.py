"""Plots of training logs."""

from pathlib import Path

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
    assert plotting.plot_history(ours, ["loss", "eval_loss"], target, "loss")
    assert Image.open(target).width > 500
    assert not plotting.plot_history(ours, ["other"], tmp_path / "none.png", "none")
    assert not (tmp_path / "none.png").exists()
