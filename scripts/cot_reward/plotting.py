"""Plots: the style of all of them, and curves from the log history of transformers' trainers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Fewer points are drawn as they are, each with a mark.
_MIN_POINTS_TO_SMOOTH = 30
# Metrics of `dpo.agreement` -> their names.
_AGREEMENT = {
    "accuracy": "right",
    "well_formed": "well-formed",
    "coherent": "coherent",
    "answers_1": "answers 1",
}


def new_figure() -> tuple[Any, Any]:
    """An empty figure and its axes, in the size and style of all plots; it needs no screen."""
    figure, (axes,) = new_panels(1)
    return figure, axes


def new_panels(count: int) -> tuple[Any, list[Any]]:
    """As `new_figure`, with `count` axes on one x axis, from top to bottom."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    size = (7, 4.2 if count == 1 else 0.6 + 2.6 * count)
    figure, grid = pyplot.subplots(
        count, figsize=size, dpi=130, layout="constrained", sharex=True, squeeze=False
    )
    for axes in grid[:, 0]:
        axes.grid(alpha=0.25)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, list(grid[:, 0])


def save_figure(figure: Any, axes: Any, path: Path, title: str) -> None:
    """Write the figure as a PNG and free its memory."""
    from matplotlib import pyplot

    axes.set_title(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    pyplot.close(figure)


def series(history: Sequence[Mapping[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """The steps and values of one key, in order. An entry without a finite value is left out.

    Reads `log_history` (key "step") and LLaMA-Factory's trainer_log.jsonl ("current_steps").
    """
    steps, values = [], []
    for entry in history:
        step = entry.get("step", entry.get("current_steps"))
        value = entry.get(key)
        if step is not None and isinstance(value, int | float) and math.isfinite(value):
            steps.append(float(step))
            values.append(float(value))
    return steps, values


def smoothed(values: Sequence[float], weight: float = 0.8) -> list[float]:
    """The exponential moving average, with bias correction at the start (as in Adam)."""
    average, total, out = 0.0, 0.0, []
    for value in values:
        average = weight * average + (1 - weight) * value
        total = weight * total + (1 - weight)
        out.append(average / total)
    return out


@dataclass(frozen=True)
class Panel:
    """One pair of axes of a plot of the log.

    `lines`: key of the log -> label; each is drawn with its held-out values (`eval_` before the
    key). `level`: a horizontal line to compare with, as height and label. `gap`: the space between
    the first two lines is shaded.
    """

    ylabel: str
    lines: Mapping[str, str]
    level: tuple[float, str] | None = None
    limits: tuple[float, float] | None = None
    gap: bool = False


@dataclass(frozen=True)
class LogPlot:
    """A plot of the log: the stem of its file, its title and its panels, from top to bottom."""

    name: str
    title: str
    panels: Sequence[Panel]


def dpo_plots(history: Sequence[Mapping[str, Any]]) -> list[LogPlot]:
    """The plots of a DPO run: loss with each of its terms, rewards with margin, accuracies.

    And what shows a drift early: answer and reasoning apart, and the model's own texts.
    """
    terms = dict.fromkeys(key for entry in history for key in entry if key.startswith("loss/"))
    losses = [Panel("weighted sum" if terms else "loss", {"loss": "loss"})]
    for key in terms:
        # The loss of a pair whose texts have equal rewards, as before the first step.
        level = (math.log(2), "no preference: ln 2") if key == "loss/sigmoid" else None
        kind = key.removeprefix("loss/")
        losses.append(Panel(f"{kind}, unweighted", {key: kind}, level))

    def accuracy(lines: Mapping[str, str]) -> Panel:
        keys = {f"rewards/accuracies{key}": label for key, label in lines.items()}
        return Panel("reward accuracy", keys, (0.5, "chance: 0.5"), (-0.03, 1.03))

    rewards = {"rewards/chosen": "chosen", "rewards/rejected": "rejected"}
    return [
        LogPlot("loss", "loss and its terms" if terms else "loss", losses),
        LogPlot(
            "rewards",
            "rewards, and their margin",
            [
                Panel("reward", rewards, gap=True),
                Panel("margin", {"rewards/margins": "chosen less rejected"}, (0.0, "")),
            ],
        ),
        LogPlot(
            "reward_accuracy",
            "pairs whose chosen text has the higher reward",
            [accuracy({"": "all pairs"})],
        ),
        LogPlot(
            "reward_accuracy_by_group",
            "reward accuracy by answer and by model",
            [
                accuracy({"_answer_1": "chosen answer 1", "_answer_2": "chosen answer 2"}),
                accuracy({"_same_model": "texts of one model", "_cross_model": "of two models"}),
            ],
        ),
        *_drift_plots(),
    ]


def _drift_plots() -> list[LogPlot]:
    parts = ("answer", "reasoning")
    by_answer = {f"answer_rewards/margins_answer_{n}": f"chosen answer {n}" for n in (1, 2)}
    return [
        LogPlot(
            "answer_and_reasoning",
            "answer and reasoning apart",
            [
                Panel("margin", {f"{part}_rewards/margins": part for part in parts}, (0.0, "")),
                *(
                    Panel(
                        f"log-prob per token, {part}",
                        {f"{part}_logps/{side}": side for side in ("chosen", "rejected")},
                    )
                    for part in parts
                ),
            ],
        ),
        LogPlot(
            "answer_by_position",
            "margin of the answer's tokens by position",
            [Panel("margin of the answer", by_answer, (0.0, ""))],
        ),
        LogPlot(
            "agreement",
            "texts that the model writes itself",
            [
                Panel(
                    "share",
                    {f"agreement/{name}": title for name, title in _AGREEMENT.items()},
                    (0.5, ""),
                    (-0.03, 1.03),
                )
            ],
        ),
    ]


def plot_log(
    history: Sequence[Mapping[str, Any]], panels: Sequence[Panel], path: Path, title: str
) -> bool:
    """Draw the panels with values in the history into one PNG; False, and no file, without any."""
    from matplotlib import ticker

    shown = [panel for panel in panels if _has_values(history, panel)]
    if not shown:
        return False
    figure, all_axes = new_panels(len(shown))
    for axes, panel in zip(all_axes, shown, strict=True):
        _draw_panel(axes, panel, history)
    all_axes[-1].set_xlabel("step")
    all_axes[-1].xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    save_figure(figure, all_axes[0], path, title)
    return True


def _has_values(history: Sequence[Mapping[str, Any]], panel: Panel) -> bool:
    return any(series(history, prefix + key)[1] for key in panel.lines for prefix in ("", "eval_"))


def _draw_panel(axes: Any, panel: Panel, history: Sequence[Mapping[str, Any]]) -> None:
    if panel.level:
        height, label = panel.level
        axes.axhline(height, color="0.5", linewidth=1, linestyle=":", label=label or None)
    trained = [
        _draw_line(axes, f"C{number}", label, *series(history, key))
        for number, (key, label) in enumerate(panel.lines.items())
    ]
    if panel.gap and trained[0][0] == trained[1][0]:
        (steps, upper), (_, lower) = trained
        axes.fill_between(steps, upper, lower, color="0.5", alpha=0.15, label="margin")
    for number, (key, label) in enumerate(panel.lines.items()):
        steps, values = series(history, f"eval_{key}")
        if steps:
            style = {"marker": "s", "markersize": 4, "linestyle": "--"}
            axes.plot(steps, values, color=f"C{number}", label=f"{label}, held out", **style)
    axes.set_ylabel(panel.ylabel)
    if panel.limits:
        axes.set_ylim(*panel.limits)
    if len(axes.get_legend_handles_labels()[1]) > 1:
        axes.legend(frameon=False, fontsize=8)


def _draw_line(
    axes: Any, colour: str, label: str, steps: list[float], values: list[float]
) -> tuple[list[float], list[float]]:
    """Draw a line of training; few points are marked, many are smoothed. Returns what is drawn."""
    if not steps:
        return steps, values
    if len(steps) < _MIN_POINTS_TO_SMOOTH:
        axes.plot(steps, values, color=colour, marker="o", markersize=4, label=label)
        return steps, values
    axes.plot(steps, values, color=colour, alpha=0.3, linewidth=1)
    values = smoothed(values)
    axes.plot(steps, values, color=colour, linewidth=2, label=f"{label}, smoothed")
    return steps, values
