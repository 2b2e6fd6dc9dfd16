"""What a page shows of a finished folder: an inference, a merge, a training, or a chain."""

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cot_reward.errors import UserError
from cot_reward.evaluation.collect import COMPARED, run_folders
from cot_reward.evaluation.compare import Run, aligned_runs, compare, read_runs
from cot_reward.evaluation.comparison_table import (
    few_clusters,
    p_value,
    percent,
    points,
    with_interval,
)
from cot_reward.evaluation.strict import OVERALL
from cot_reward.report.browser import (
    browser_items,
    pair_items,
    right_by_difference,
    right_by_length,
)
from cot_reward.report.figures import accuracy_plot, reliability_plot, trend_plot, votes_plot
from cot_reward.report.flow import chain_steps, inference_step, merge_steps
from cot_reward.report.page import Content, Curve, Plot, Table, write_page
from cot_reward.report.thumbnails import Thumbnails
from cot_reward.store import read_json

_JUDGED = "correct.jsonl"
_PAIRS = "train.jsonl"
# Their texts are part of the page.
_MOST_PAIRS = 500
# Metrics beside the accuracy, as the client's summary calls them.
_MORE = ("right_in_both", "vote", "survives_swap", "answers_1", "unparsed", "coherent")


def write_folder_page(folder: Path, out: Path, media_root: Path, samples: int, limit: int) -> Path:
    """The page of one folder, whatever it is. Raises UserError for one that is none of them."""
    content, thumbnails = Content(str(folder)), Thumbnails(media_root)
    if (folder / _JUDGED).exists():
        runs = read_runs([folder])
        add_comparison(content, compare(runs), runs, thumbnails, samples, limit)
        content.steps = [inference_step(folder)]
    elif (folder / _PAIRS).exists():
        content.steps = list(merge_steps(folder))
        content.pairs = pair_items(folder / _PAIRS, thumbnails, min(limit, _MOST_PAIRS))
    elif (folder / "trainer_state.json").exists():
        content.curves = list(_curves(folder / "curves"))
        if not content.curves:
            content.curves = list(_drawn_loss(folder, out))
    elif (folder / "results.json").exists():
        _add_chain(content, folder, thumbnails, samples, limit)
    else:
        raise UserError(
            f"{folder}: no inference ({_JUDGED}), merge ({_PAIRS}), training "
            "(trainer_state.json) or chain (results.json)"
        )
    return write_page(content, thumbnails, out)


def write_comparison_page(
    found: Mapping[str, Any], runs: Sequence[Run], out: Path, media_root: Path, samples: int,
    limit: int,
) -> Path:  # fmt: skip
    """The page of a comparison of models."""
    content, thumbnails = Content("comparison"), Thumbnails(media_root)
    add_comparison(content, found, runs, thumbnails, samples, limit)
    return write_page(content, thumbnails, out)


def add_comparison(
    content: Content, found: Mapping[str, Any], runs: Sequence[Run], thumbnails: Thumbnails,
    samples: int, limit: int,
) -> None:  # fmt: skip
    """Add tables, plots and items of a comparison; items are those of its first benchmark."""
    for place, (benchmark, one) in enumerate(found.items()):
        own = aligned_runs([run for run in runs if run.benchmark == benchmark])
        name = f"b{place}"
        # Folders of the client are of no benchmark.
        title = "" if benchmark == "rows" else benchmark
        content.tables += _tables(title, one)
        models = one["models"]
        items = browser_items(own, thumbnails, samples, limit)
        plots = [
            Plot("by_group", accuracy_plot(models, f"{name}-groups"), title),
            Plot("by_votes", votes_plot(models, f"{name}-votes"), title),
            Plot("by_probability", reliability_plot(models, f"{name}-probability"), title),
            Plot("by_difference", trend_plot(
                list(models), right_by_difference(items, len(own)), f"{name}-difference"), title),
            Plot("by_length", trend_plot(
                list(models), right_by_length(own), f"{name}-length"), title),
        ]  # fmt: skip
        content.plots += [plot for plot in plots if plot.svg]
        if not content.items:
            content.models = [run.model for run in own]
            content.items = items
            if (count := len(own[0].answers.items)) > limit:
                content.subtitle = f"The browser has the first {limit:,} of {count:,} items"


def _tables(benchmark: str, one: Mapping[str, Any]) -> Iterator[Table]:
    models = one["models"]
    first = next(iter(models.values()))
    groups, warning = list(first["groups"]), few_clusters(first)
    yield Table(
        "scores", ["", *groups, *(name.replace("_", " ") for name in _MORE)],
        [
            [
                model, *(with_interval(score["groups"][group]["accuracy"]) for group in groups),
                *(percent(score["groups"][OVERALL].get(name, {}).get("share")) for name in _MORE),
            ]
            for model, score in models.items()
        ],
        benchmark, "scores_note", [warning] if warning else [],
    )  # fmt: skip
    if official := one["official"]:
        rule = next(iter(official.values()))
        names = list(rule["groups"])
        yield Table(
            "official", ["", *names, "overall"],
            [
                [model, *(percent(score["groups"].get(name)) for name in names),
                 percent(score["overall"])]
                for model, score in official.items()
            ],
            benchmark, lines=[rule["rule"]],
        )  # fmt: skip
    if one["differences"]:
        yield Table(
            "differences", ["", "", *one["differences"][0]["groups"], "p", "p (Holm)"],
            [
                [
                    entry["before"], entry["after"],
                    *(points(figure) for figure in entry["groups"].values()),
                    p_value(entry["p"]), p_value(entry["p_holm"]),
                ]
                for entry in one["differences"]
            ],
            benchmark, "differences_note",
        )  # fmt: skip


def _add_chain(
    content: Content, folder: Path, thumbnails: Thumbnails, samples: int, limit: int
) -> None:
    """The stages on held-out data, the way of the data, curves and pairs of the first seed."""
    results = read_json(folder / "results.json")
    seeds = results["seeds"]
    first = next(iter(run_folders(folder, seeds).values()))
    seeds_told = f"seeds {', '.join(map(str, seeds))}" if seeds else ""
    # Sampled answers to the held-out data. The samples of all seeds go together.
    found = [
        (run / f"eval_{record['stage']}" / "sampled", record["stage"])
        for record in results["stages"]
        for run in run_folders(folder, seeds).values()
    ]
    # Models that the chain has not trained were asked once, whatever the seeds.
    found += [
        (one / "sampled", one.name.removeprefix(f"eval_{COMPARED}"))
        for one in sorted(folder.glob(f"eval_{COMPARED}*"))
    ]
    there = [(one, stage) for one, stage in found if (one / _JUDGED).exists()]
    if there:
        runs = read_runs([one for one, _ in there], [stage for _, stage in there])
        add_comparison(content, compare(runs, common=True), runs, thumbnails, samples, limit)
        if len(seeds) > 1:
            told = f"Tables and plots: {seeds_told}; texts, steps and pairs: seed {seeds[0]}"
            content.subtitle = "; ".join(filter(None, (told, content.subtitle)))
    content.steps = chain_steps(first)
    content.curves = list(_curves(folder / "curves"))
    if (first / "pairs" / _PAIRS).exists():
        content.pairs = pair_items(first / "pairs" / _PAIRS, thumbnails, min(limit, _MOST_PAIRS))


def _curves(folder: Path) -> Iterator[Curve]:
    for path in sorted(folder.glob("*.png")):
        data = base64.b64encode(path.read_bytes()).decode()
        yield Curve(path.stem.replace("_", " "), f"data:image/png;base64,{data}")


def _drawn_loss(folder: Path, out: Path) -> Iterator[Curve]:
    """The loss of a training that has drawn nothing itself."""
    from cot_reward.plotting import Panel, plot_log

    history = json.loads((folder / "trainer_state.json").read_text("utf-8"))["log_history"]
    path = out / "report_data/loss.png"
    if plot_log(history, [Panel("loss", {"loss": "loss"})], path, str(folder)):
        yield from _curves(path.parent)
