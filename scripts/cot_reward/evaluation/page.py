"""The collected results as people read them: the Markdown table, plots and training curves."""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

from cot_reward.evaluation.collect import CONTROLS, MODES, collect, run_folders, seeds_in_words
from cot_reward.evaluation.rounds import evaluated_rounds, round_folder
from cot_reward.evaluation.watch import FIGURES
from cot_reward.plotting import LogPlot, Panel, dpo_plots, new_figure, plot_log, save_figure
from cot_reward.store import write_json, write_text_file

# Trainings that have a plot of their loss -> its title. Stage 3 has the plots of `dpo_plots`.
LOSS_CURVES = {
    "stage1": "Stage 1: loss",
    "stage2": "Stage 2: loss",
    "control_rejection": "Control, one more rejection round: loss",
}


def table(results: Mapping[str, Any]) -> str:
    """The results as Markdown: a row for each stage and mode, then the differences."""
    lines = [*_stage_lines(results), "", *_difference_lines(results)]
    if by_source := results.get("differences_by_source"):
        lines += ["", *_source_lines(results["stages"], by_source)]
    if pairs := _pair_lines(results["pairs"]):
        lines += ["", *pairs]
    if watched := _watch_lines(results["watch"]):
        lines += ["", *watched]
    return "\n".join(lines) + "\n"


def _stage_lines(results: Mapping[str, Any]) -> list[str]:
    seeds = ", ".join(map(str, results["seeds"]))
    pooled = f", pooled over the seeds {seeds}" if seeds else ""
    lines = [
        f"Held-out accuracy in %, with 95% Wilson intervals{pooled}.",
        "",
        "| stage | decoding | accuracy | well-formed | coherent | answers 1 | survives swap "
        "| right twice | s/step |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for record in results["stages"]:
        for mode, title in MODES.items():
            metrics = record[mode]
            pace = record.get("training", {}).get("seconds_per_step")
            cells = [
                record["title"] if mode == "greedy" else "",
                title,
                _percent_with_interval(metrics["accuracy"]),
                _percent(metrics["well_formed"]),
                _percent(metrics["coherent"]),
                _percent(metrics["answers_1"]),
                _percent(metrics["survives_swap"]),
                _percent_with_interval(metrics["right_in_both_orders"]),
                f"{pace:.2f}" if pace and mode == "greedy" else "",
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def _difference_lines(results: Mapping[str, Any]) -> list[str]:
    lines = [
        "Differences in accuracy, in points, with 95% intervals (paired bootstrap, comparisons):",
        "",
        "| from | to | greedy | T=1 | at T=1 |",
        "|---|---|---|---|---|",
    ]
    by_pair: dict[tuple[str, str], dict[str, Any]] = defaultdict(dict)
    for entry in results["differences"]:
        by_pair[entry["before"], entry["after"]][entry["mode"]] = entry
    for (before, after), by_mode in by_pair.items():
        cells = [_points(by_mode[mode]) for mode in MODES]
        low, high = by_mode["sampled"]["low"], by_mode["sampled"]["high"]
        finding = "better" if low > 0 else "worse" if high < 0 else "no clear difference"
        seeds = by_mode["sampled"]["seeds"]
        if seeds != results["seeds"]:
            after = f"{after} ({seeds_in_words(seeds)})"
        lines.append(f"| {before} | {after} | {' | '.join(cells)} | {finding} |")
    return lines


def _source_lines(
    stages: Sequence[Mapping[str, Any]], differences: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """Accuracy of each stage for each source, then stage 3 less stage 2."""
    sources = sorted({source for of_mode in differences.values() for source in of_mode})
    lines = [
        "Held-out accuracy by source (data set) in %, with 95% Wilson intervals; the last rows are "
        "stage 3 less stage 2 in points (paired bootstrap, comparisons):",
        "",
        "| stage | decoding | " + " | ".join(sources) + " |",
        "|---" * (2 + len(sources)) + "|",
    ]
    for record in stages:
        for mode, title in MODES.items():
            found = record[mode].get("accuracy_by_source", {})
            cells = [_percent_with_interval(found[s]) if s in found else "-" for s in sources]
            name = record["title"] if mode == "greedy" else ""
            lines.append("| " + " | ".join([name, title, *cells]) + " |")
    for mode, title in MODES.items():
        of_mode = differences[mode]
        cells = [_points(of_mode[s]) if s in of_mode else "-" for s in sources]
        name = "stage 3 less stage 2" if mode == "greedy" else ""
        lines.append("| " + " | ".join([name, title, *cells]) + " |")
    return lines


def _pair_lines(pairs_of_run: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Number, kinds and shortcut accuracies of the pairs of each run and round."""
    rows = []
    for name, pairs in pairs_of_run.items():
        if not pairs:
            continue
        kinds, shortcut = pairs["pair_kinds"], pairs["shortcut"]
        cells = [
            name or "-", str(pairs["pairs"]), str(pairs["comparisons"]),
            str(kinds["same_model"]), str(kinds["published"]),
            f"{pairs['chosen_answer']['1']} / {pairs['chosen_answer']['2']}",
            *("-" if value is None else f"{value:.2f}" for value in shortcut.values()),
        ]  # fmt: skip
        rows.append("| " + " | ".join(cells) + " |")
    if not rows:
        return []
    names = next(pairs["shortcut"] for pairs in pairs_of_run.values() if pairs)
    head = [
        "run", "pairs", "comparisons", "of one model", "rejected from the pass before",
        "chosen answer 1 / 2", *names,
    ]  # fmt: skip
    return [
        "The pairs, and how often words, length or answer alone tell chosen from rejected:",
        "",
        "| " + " | ".join(head) + " |",
        "|---" * len(head) + "|",
        *rows,
    ]


def _watch_lines(watch_of_run: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Stage 3 compared with stage 2 by what they write, for each run and round, in points."""
    watched = {name: found for name, found in watch_of_run.items() if found}
    if not watched:
        return []
    names = [*FIGURES, "answers_1"]
    titles = [*FIGURES.values(), "answers 1"]
    lines = [
        "Stage 3 less stage 2 on the data that watch it (a later round: less the round before), in "
        "points with 95% intervals:",
        "",
        "| run | " + " | ".join(titles) + " | fell |",
        "|---" * (len(titles) + 2) + "|",
    ]
    for run, found in watched.items():
        cells = [_points(found["figures"][name]) for name in names]
        lines.append(f"| {run or '-'} | {' | '.join(cells)} | {', '.join(found['fell']) or '-'} |")
    return lines


def _points(difference: Mapping[str, float]) -> str:
    low, high = (100 * difference[name] for name in ("low", "high"))
    return f"{100 * difference['difference']:+.1f} [{low:+.1f}, {high:+.1f}]"


def _percent(share: Mapping[str, Any]) -> str:
    return f"{100 * share['share']:.1f}"


def _percent_with_interval(share: Mapping[str, Any]) -> str:
    return f"{_percent(share)} [{100 * share['low']:.1f}, {100 * share['high']:.1f}]"


def plot_stages(results: Mapping[str, Any], path: Path) -> None:
    """Accuracy by stage, greedy and sampled, with the bootstrap intervals, as a PNG."""
    figure, axes = new_figure()
    # Names of two stages side by side have room for lines of so many letters.
    names = [
        "\n".join(line for part in record["title"].split(": ") for line in wrap(part, 16))
        for record in results["stages"]
    ]
    for number, (mode, title) in enumerate(MODES.items()):
        accuracies = [record[mode]["accuracy"] for record in results["stages"]]
        heights = [100 * accuracy["share"] for accuracy in accuracies]
        below = [100 * max(0.0, acc["share"] - acc["bootstrap_low"]) for acc in accuracies]
        above = [100 * max(0.0, acc["bootstrap_high"] - acc["share"]) for acc in accuracies]
        places = [index + 0.12 * (2 * number - 1) for index in range(len(names))]
        axes.errorbar(places, heights, yerr=[below, above], fmt="o", capsize=4, label=title)
        for x, y in zip(places, heights, strict=True):
            axes.annotate(
                f"{y:.1f}", (x, y), xytext=(8 if number else -8, 0), textcoords="offset points",
                ha="left" if number else "right", va="center", fontsize=8,
            )  # fmt: skip
    axes.axhline(50, color="0.6", linewidth=1, linestyle="--")
    axes.annotate("chance", (-0.55, 50.5), fontsize=8, color="0.4", va="bottom")
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.set_xticks(range(len(names)), names, fontsize=8)
    axes.set_ylabel("held-out accuracy, %")
    axes.grid(visible=False, axis="x")
    axes.legend(loc="lower right")
    save_figure(
        figure, axes, path, "Accuracy by stage, both orders, 95% intervals over comparisons"
    )


def plot_curves(run: Path, out: Path) -> list[Path]:
    """The training curves of one run as PNGs in `out`; returns the paths of those drawn."""
    out.mkdir(parents=True, exist_ok=True)
    drawn = []
    for history, plot in _curves(run):
        path = out / f"{plot.name}.png"
        if plot_log(history, plot.panels, path, f"{plot.title} ({run})"):
            drawn.append(path)
    return drawn


def _curves(run: Path) -> Iterator[tuple[list[dict[str, Any]], LogPlot]]:
    """The log history and the plot of every curve of a run."""
    for stage, title in LOSS_CURVES.items():
        if stage not in CONTROLS or (run / stage).exists():
            panels = [Panel("loss", {"loss": stage})]
            yield _log_history(run / stage), LogPlot(f"{stage}_loss", title, panels)
    for number in evaluated_rounds(run):
        stem, title = "dpo", "DPO"
        if number > 1:
            stem, title = f"dpo_round{number}", f"DPO, round {number}"
        history = _log_history(round_folder(run, number) / "stage3")
        for plot in dpo_plots(history):
            yield history, LogPlot(f"{stem}_{plot.name}", f"{title}: {plot.title}", plot.panels)


def _log_history(folder: Path) -> list[dict[str, Any]]:
    state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
    history: list[dict[str, Any]] = state["log_history"]
    return history


def write_report(runs: Path, seeds: Sequence[int], link: str = "") -> str:
    """Write results.json, results.md and the plots below `runs`; returns the table.

    `link`: a page that results.md names below the table.
    """
    results = collect(runs, seeds)
    curves = runs / "curves"
    drawn = plot_curves(next(iter(run_folders(runs, seeds).values())), curves)
    plot_stages(results, curves / "stages.png")
    text = table(results)
    told = f"\nTexts, pictures, pairs and plots: [{link}]({link})\n" if link else ""
    write_text_file(runs / "results.md", text + told)
    write_json(runs / "results.json", results)
    return text + f"\n{runs / 'results.json'}, {len(drawn) + 1} plots in {curves}\n"
