"""The collected results as people read them: a table, plots, and training curves."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cot_reward.evaluation.collect import MODES, collect
from cot_reward.plotting import new_figure, plot_history, save_figure
from cot_reward.store import write_json, write_text_file


def _interval(share: Mapping[str, Any]) -> str:
    return f"{100 * share['share']:.1f} [{100 * share['low']:.1f}, {100 * share['high']:.1f}]"


def _percent(share: Mapping[str, Any]) -> str:
    return f"{100 * share['share']:.1f}"


def table(results: Mapping[str, Any]) -> str:
    """The results as Markdown."""
    lines = [
        "Held-out accuracy in %, with 95% Wilson intervals, pooled over the seeds "
        + ", ".join(map(str, results["seeds"])) + ".",
        "",
        "| stage | decoding | accuracy | well-formed | coherent | answers 1 | survives swap "
        "| right twice | s/step |",
        "|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for record in results["stages"]:
        for mode, shown in MODES.items():
            figures = record[mode]
            pace = record.get("training", {}).get("seconds_per_step")
            cells = [
                record["title"] if mode == "greedy" else "",
                shown,
                _interval(figures["accuracy"]),
                _percent(figures["well_formed"]),
                _percent(figures["coherent"]),
                _percent(figures["answers_1"]),
                _percent(figures["survives_swap"]),
                _interval(figures["right_in_both_orders"]),
                f"{pace:.2f}" if pace and mode == "greedy" else "",
            ]
            lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        "Differences in accuracy, in points, with 95% intervals (paired bootstrap, comparisons):",
        "",
        "| from | to | greedy | T=1 | at T=1 |",
        "|---|---|---|---|---|",
    ]
    by_pair: dict[tuple[str, str], dict[str, Any]] = defaultdict(dict)
    for entry in results["differences"]:
        by_pair[entry["before"], entry["after"]][entry["mode"]] = entry
    for (before, after), modes in by_pair.items():
        cells = [
            f"{100 * e['difference']:+.1f} [{100 * e['low']:+.1f}, {100 * e['high']:+.1f}]"
            for e in (modes["greedy"], modes["sampled"])
        ]
        low, high = modes["sampled"]["low"], modes["sampled"]["high"]
        verdict = "better" if low > 0 else "worse" if high < 0 else "no clear difference"
        lines.append(f"| {before} | {after} | {' | '.join(cells)} | {verdict} |")
    return "\n".join(lines) + "\n"


def plot_stages(results: Mapping[str, Any], path: Path) -> None:
    """Accuracy by stage, greedy and sampled, with the bootstrap intervals."""
    figure, axes = new_figure()
    names = [record["title"].replace(": ", ":\n") for record in results["stages"]]
    for number, (mode, shown) in enumerate(MODES.items()):
        accuracy = [record[mode]["accuracy"] for record in results["stages"]]
        middle = [100 * a["share"] for a in accuracy]
        below = [100 * max(0.0, a["share"] - a["bootstrap_low"]) for a in accuracy]
        above = [100 * max(0.0, a["bootstrap_high"] - a["share"]) for a in accuracy]
        where = [index + 0.12 * (2 * number - 1) for index in range(len(names))]
        axes.errorbar(where, middle, yerr=[below, above], fmt="o", capsize=4, label=shown)
        for x, y in zip(where, middle, strict=True):
            side = 8 if number else -8
            axes.annotate(
                f"{y:.1f}", (x, y), xytext=(side, 0), textcoords="offset points",
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


def plot_curves(runs: Path, seed: int, out: Path) -> list[Path]:
    """The training curves of one seed as PNGs; returns their paths."""
    out.mkdir(parents=True, exist_ok=True)
    curves = [
        ("stage1", "loss", "stage1_loss", "Stage 1: loss"),
        ("stage2", "loss", "stage2_loss", "Stage 2: loss"),
        ("stage3", "loss", "dpo_loss", "DPO: loss"),
        ("stage3", "rewards/chosen", "dpo_chosen_reward", "DPO: reward of the chosen"),
        ("stage3", "rewards/rejected", "dpo_rejected_reward", "DPO: reward of the rejected"),
        ("stage3", "rewards/accuracies", "dpo_reward_accuracy", "DPO: reward accuracy"),
    ]
    drawn = []
    for stage, key, name, title in curves:
        state = runs / f"seed{seed}" / stage / "trainer_state.json"
        history = json.loads(state.read_text(encoding="utf-8"))["log_history"]
        path = out / f"{name}.png"
        if plot_history(history, [key], path, f"{title} (demo, seed {seed})"):
            drawn.append(path)
    return drawn


def write_report(runs: Path, seeds: Sequence[int]) -> str:
    """Write `results.json`, `results.md` and the plots below `runs`; returns the table."""
    results = collect(runs, seeds)
    drawn = plot_curves(runs, seeds[0], runs / "curves")
    plot_stages(results, runs / "curves" / "stages.png")
    text = table(results)
    write_text_file(runs / "results.md", text)
    write_json(runs / "results.json", results)
    return text + f"\n{runs / 'results.json'}, {len(drawn) + 1} plots in {runs / 'curves'}\n"
