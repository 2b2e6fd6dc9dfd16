"""Pictures of what a merge did: positions, lengths and pass rates."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from cot_reward.pairing.engine.database import Engine
from cot_reward.plotting import new_figure, save_figure

# Odd, so that a difference of 0 is in the middle of a bin.
_BINS = 41
_PASS_RATE_BINS = 20

PLOTS = ("answer_position.png", "length_difference.png", "pass_rate.png")


def remove_plots(folder: Path) -> None:
    """Remove the pictures of an earlier merge, which do not fit other rows. Raises OSError."""
    for name in PLOTS:
        with suppress(FileNotFoundError, NotADirectoryError):
            (folder / name).unlink()


def draw(engine: Engine, folder: Path) -> None:
    """Write the pictures of `PLOTS` into a folder.

    "Before" shows the best pairs of every comparison, "after" the pairs of train.jsonl and
    eval.jsonl.
    """
    from matplotlib import ticker

    def save(name: str, title: str, figure: Any, axes: Any) -> None:
        axes.yaxis.set_major_locator(ticker.MaxNLocator(integer=True))
        save_figure(figure, axes, folder / name, title)

    before, after = (_count_answers(engine, when) for when in ("before", "after"))
    figure, axes = new_figure()
    for offset, label, counts in ((-0.2, "before", before), (0.2, "after", after)):
        bars = axes.bar([1 + offset, 2 + offset], [counts.get(1, 0), counts.get(2, 0)], 0.38)
        bars.set_label(label)
        axes.bar_label(bars, fmt="{:,.0f}")
    axes.set_xticks([1, 2], ["first candidate", "second candidate"])
    axes.set_ylabel("pairs")
    axes.legend(frameon=False)
    save("answer_position.png", "Answer of the chosen text, before and after balancing",
         figure, axes)  # fmt: skip

    edges, histograms = _histograms(engine)
    figure, axes = new_figure()
    for label in ("before", "after"):
        axes.stairs(histograms[label], edges, label=label, fill=label == "before",
                    alpha=0.35 if label == "before" else 1, linewidth=1.8)  # fmt: skip
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlabel("characters of the chosen text - characters of the rejected one")
    axes.set_ylabel("pairs")
    axes.legend(frameon=False)
    save("length_difference.png", "Length difference, before and after balancing", figure, axes)

    figure, axes = new_figure()
    width = 1 / _PASS_RATE_BINS
    rates = engine.run(
        f"SELECT least(floor(rate * {_PASS_RATE_BINS} + 1e-9), {_PASS_RATE_BINS - 1})::INT AS bin, "
        "count(*), count(used.comparison) FROM pass_rates "
        "LEFT JOIN (SELECT DISTINCT comparison FROM pairs WHERE state = 'used') AS used "
        "USING (comparison) GROUP BY ALL ORDER BY ALL"
    )
    centres = [(number + 0.5) * width for number, _, _ in rates]
    for label, column, alpha in (("all comparisons", 1, 0.35), ("in pairs", 2, 1.0)):
        axes.bar(centres, [row[column] for row in rates], width * 0.9, label=label, alpha=alpha,
                 color="C0")  # fmt: skip
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of a comparison's samples that are right")
    axes.set_ylabel("comparisons")
    axes.legend(frameon=False)
    save("pass_rate.png", "Pass rate of the comparisons", figure, axes)


def _condition(when: str) -> str:
    """The pairs that count, before or after balancing."""
    return "first_choice" if when == "before" else "state = 'used'"


def _count_answers(engine: Engine, when: str) -> Mapping[int, int]:
    return dict(
        engine.run(
            f"SELECT chosen_answer, count(*) FROM pairs WHERE {_condition(when)} GROUP BY ALL"
        )
    )


def _histograms(engine: Engine) -> tuple[Sequence[float], dict[str, list[int]]]:
    """Edges of the bins, and counts before and after; the outer bins hold the 0.5% beyond."""
    ((far,),) = engine.run(
        "SELECT quantile_cont(abs(length_difference), 0.995) FROM pairs WHERE first_choice"
    )
    far = max(float(far or 0), _BINS / 2)
    width = 2 * far / _BINS
    counts: dict[str, list[int]] = {}
    for label in ("before", "after"):
        counts[label] = [0] * _BINS
        for number, count in engine.run(
            f"SELECT least(greatest(floor((length_difference + {far}) / {width}), 0), "
            f"{_BINS - 1})::INT, count(*) FROM pairs WHERE {_condition(label)} GROUP BY ALL"
        ):
            counts[label][number] = count
    return [-far + n * width for n in range(_BINS + 1)], counts
