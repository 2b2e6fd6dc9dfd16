"""The page's own plots as SVG, in the colours of the page around them."""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from cot_reward.evaluation.strict import MACRO
from cot_reward.plotting import new_figure

# A colour that stands for that of the page's text.
_INK = "#010203"
# Of models, told apart in both themes and by most colour-blind people (Okabe and Ito 2008).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c564b", "#7f7f7f")
_STYLE = {
    "svg.fonttype": "none", "text.color": _INK, "axes.edgecolor": _INK, "axes.labelcolor": _INK,
    "xtick.color": _INK, "ytick.color": _INK, "font.size": 10,
}  # fmt: skip


@contextmanager
def _new_plot(name: str) -> Iterator[tuple[Any, Any]]:
    """An empty figure and its axes, in the style of the page while it is drawn and written."""
    import matplotlib

    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        yield new_figure()


def _svg(figure: Any, name: str) -> str:
    from matplotlib import pyplot

    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    pyplot.close(figure)
    text = file.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    # Several plots on one page: the names inside must differ.
    text = re.sub(r'(id="|url\(#|href="#)', rf"\1{name}-", text)
    return re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', "", text, count=1)


def accuracy_plot(models: Mapping[str, Any], name: str) -> str:
    """Accuracy by group with intervals, a colour for each model."""
    with _new_plot(name) as (figure, axes):
        groups = [group for group in next(iter(models.values()))["groups"] if group != MACRO]
        figure.set_size_inches(7, 1.2 + 0.28 * len(groups) * max(2, len(models)))
        height = 0.7 / len(models)
        for number, (model, score) in enumerate(models.items()):
            figures = [score["groups"][group]["accuracy"] for group in groups]
            places = [
                -row - height * (number - (len(models) - 1) / 2) for row in range(len(groups))
            ]
            shares = [100 * figure["share"] for figure in figures]
            errors = [
                [100 * max(0.0, one["share"] - one["low"]) for one in figures],
                [100 * max(0.0, one["high"] - one["share"]) for one in figures],
            ]
            axes.errorbar(
                shares, places, xerr=errors, fmt="o", capsize=3, label=model,
                color=COLOURS[number % len(COLOURS)],
            )  # fmt: skip
        axes.axvline(50, color=_INK, alpha=0.4, linewidth=1, linestyle="--")
        axes.set_yticks([-row for row in range(len(groups))], groups)
        axes.set_xlabel("%")
        axes.grid(visible=False, axis="y")
        if len(models) > 1:
            axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=4, frameon=False)
        return _svg(figure, name)


def votes_plot(models: Mapping[str, Any], name: str) -> str:
    """Right majorities, and pass@k, by the number of samples; "" for one sample."""
    if all(len(score["by_votes"]) < 2 for score in models.values()):
        return ""
    with _new_plot(name) as (figure, axes):
        for number, (model, score) in enumerate(models.items()):
            ks = [int(k) for k in score["by_votes"]]
            colour = COLOURS[number % len(COLOURS)]
            for metric, style, label in (("right", "o-", model), ("pass", "^:", None)):
                shares = [100 * found[metric] for found in score["by_votes"].values()]
                axes.plot(ks, shares, style, color=colour, label=label)
        axes.set_xscale("log", base=2)
        ks = sorted({int(k) for score in models.values() for k in score["by_votes"]})
        axes.set_xticks(ks, map(str, ks))
        axes.set_xlabel("k")
        axes.set_ylabel("%")
        axes.legend(frameon=False)
        return _svg(figure, name)


def trend_plot(
    models: Sequence[str], trends: Sequence[Sequence[tuple[float, float, int]]], name: str
) -> str:
    """Share of right texts by a size, a line for each model; "" without any text."""
    if not any(trends):
        return ""
    with _new_plot(name) as (figure, axes):
        for number, (model, trend) in enumerate(zip(models, trends, strict=True)):
            axes.plot(
                [size for size, *_ in trend], [100 * share for _, share, _ in trend], "o-",
                color=COLOURS[number % len(COLOURS)], label=model,
            )  # fmt: skip
        axes.axhline(50, color=_INK, alpha=0.4, linewidth=1, linestyle="--")
        axes.set_ylabel("%")
        if len(models) > 1:
            axes.legend(frameon=False)
        return _svg(figure, name)


def reliability_plot(models: Mapping[str, Any], name: str) -> str:
    """Accuracy by the probability of the answer, beside what it promises; "" without any."""
    found = {
        model: (number, score["by_probability"]["bins"])
        for number, (model, score) in enumerate(models.items())
        if score["by_probability"]
    }
    if not found:
        return ""
    with _new_plot(name) as (figure, axes):
        axes.plot([50, 100], [50, 100], "--", color=_INK, alpha=0.4, linewidth=1)
        for model, (number, bins) in found.items():
            colour, total = COLOURS[number % len(COLOURS)], sum(count for *_, count in bins)
            places = [100 * confidence for confidence, *_ in bins]
            shares = [100 * share for _, share, _ in bins]
            axes.plot(places, shares, color=colour, alpha=0.3, linewidth=1)
            # A bin's mark is as large as its share of the items.
            sizes = [8 + 400 * count / total for *_, count in bins]
            axes.scatter(places, shares, s=sizes, color=colour, alpha=0.8, label=model)
        axes.set_xlabel("%")
        axes.set_ylabel("%")
        axes.legend(frameon=False)
        return _svg(figure, name)
