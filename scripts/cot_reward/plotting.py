"""Plots: the style of all of them, and curves from the log history of transformers' trainers."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# With fewer points the raw line is clear enough.
_MIN_POINTS_TO_SMOOTH = 30


def new_figure() -> tuple[Any, Any]:
    """An empty figure and its axes, in the size and style of all plots; it needs no screen."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), dpi=130, layout="constrained")
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


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


def plot_history(
    history: Sequence[Mapping[str, Any]], keys: Sequence[str], path: Path, title: str
) -> bool:
    """Draw the keys of the history into one PNG; False, and no file, if no key occurs."""
    from matplotlib import ticker

    drawn = [(key, *series(history, key)) for key in keys]
    drawn = [line for line in drawn if line[1]]
    if not drawn:
        return False
    figure, axes = new_figure()
    for number, (key, steps, values) in enumerate(drawn):
        colour = f"C{number}"
        marker = "o" if len(steps) <= 12 else None
        if len(steps) < _MIN_POINTS_TO_SMOOTH or key.startswith("eval"):
            axes.plot(steps, values, color=colour, marker=marker, markersize=4, label=key)
        else:
            axes.plot(steps, values, color=colour, alpha=0.3, linewidth=1)
            axes.plot(steps, smoothed(values), color=colour, linewidth=2, label=f"{key}, smoothed")
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    if len(drawn) == 1:
        axes.set_ylabel(drawn[0][0])
    if len(drawn) > 1 or len(drawn[0][1]) >= _MIN_POINTS_TO_SMOOTH:
        axes.legend(frameon=False)
    save_figure(figure, axes, path, title)
    return True
