"""The demo's table: held-out figures stage by stage, differences with intervals, curves."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cot_reward.errors import UserError
from cot_reward.plotting import new_figure, plot_history, save_figure
from cot_reward.rows.reading import read_rows
from cot_reward.stats import bootstrap_mean, paired_difference, tally
from cot_reward.store import write_json, write_text_file

# name -> what it is, in the order of the chain; "control" is plain SFT on stage 3's chosen texts.
STAGES = {
    "base": "base",
    "stage1": "stage 1: cold start",
    "stage2": "stage 2: rejection sampling",
    "control": "control: SFT on the chosen",
    "stage3": "stage 3: DPO",
}
# (after, before): each is a claim that the chain could make.
DIFFERENCES = (
    ("stage1", "base"),
    ("stage2", "stage1"),
    ("stage3", "stage2"),
    ("control", "stage2"),
    ("stage3", "control"),
)
MODES = {"greedy": "greedy", "sampled": "T=1"}


def judged_rows(folder: Path) -> list[dict[str, Any]]:
    """Every judged row of a finished inference run."""
    if not (folder / "summary.json").exists():
        raise UserError(f"{folder}: no summary.json; this inference has not finished")
    rows: list[dict[str, Any]] = []
    for name in ("correct", "incorrect", "unusable"):
        path = folder / f"{name}.jsonl"
        if path.stat().st_size:
            rows += [row for _, row in read_rows(path) if isinstance(row, dict)]
    return rows


def by_comparison(runs: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, float]:
    """Mean correctness of each comparison over orders, samples and runs: the independent units."""
    seen: dict[str, list[bool]] = defaultdict(list)
    for rows in runs:
        for row in rows:
            seen[row["id"]].append(row["verdict"] == "correct")
    return {key: sum(right) / len(right) for key, right in seen.items()}


def _folder(runs: Path, seed: int, stage: str) -> Path:
    return runs / "eval_base" if stage == "base" else runs / f"seed{seed}" / f"eval_{stage}"


def _training(folder: Path) -> dict[str, Any]:
    """Optimiser steps and seconds per step, as the trainer recorded them."""
    path = folder / "trainer_state.json"
    if not path.exists():
        return {}
    state = json.loads(path.read_text(encoding="utf-8"))
    seconds = next(
        (e["train_runtime"] for e in reversed(state["log_history"]) if "train_runtime" in e), 0.0
    )
    steps = state["global_step"]
    return {"steps": steps, "seconds_per_step": seconds / steps if steps else 0.0}


def collect(runs: Path, seeds: Sequence[int]) -> dict[str, Any]:
    """Everything the table shows: one record per stage, and the differences between stages."""
    records = []
    units: dict[tuple[str, str], dict[str, float]] = {}
    for stage, title in STAGES.items():
        # The base is one model, whatever the seeds.
        folders = {
            seed: _folder(runs, seed, stage) for seed in (seeds[:1] if stage == "base" else seeds)
        }
        record: dict[str, Any] = {"stage": stage, "title": title, "seeds": list(folders)}
        for mode in MODES:
            per_seed = {seed: judged_rows(folder / mode) for seed, folder in folders.items()}
            # Rows of several seeds share ids: the seed keeps their swap pairs apart.
            pooled = [
                row | {"id": f"{seed}/{row['id']}"}
                for seed, rows in per_seed.items()
                for row in rows
            ]
            record[mode] = tally(pooled)
            units[stage, mode] = by_comparison(list(per_seed.values()))
            low, high = bootstrap_mean(list(units[stage, mode].values()))
            # Samples of one comparison are not independent; this interval resamples comparisons.
            record[mode]["accuracy"] |= {"bootstrap_low": low, "bootstrap_high": high}
            record[mode]["accuracy_by_seed"] = {
                str(seed): tally(rows)["accuracy"]["share"] for seed, rows in per_seed.items()
            }
        if stage != "base":
            record["training"] = _training(runs / f"seed{seeds[0]}" / stage)
        records.append(record)
    differences = []
    for after, before in DIFFERENCES:
        for mode in MODES:
            first, second = units[after, mode], units[before, mode]
            if first.keys() != second.keys():
                raise UserError(f"{after} and {before} were not evaluated on the same comparisons")
            keys = sorted(first)
            difference = paired_difference([first[k] for k in keys], [second[k] for k in keys])
            differences.append({"after": after, "before": before, "mode": mode} | difference)
    steps = runs / "steps.jsonl"
    return {
        "seeds": list(seeds),
        "stages": records,
        "differences": differences,
        "step_seconds": [row for _, row in read_rows(steps)] if steps.exists() else [],
    }


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


def report(runs: Path, seeds: Sequence[int]) -> str:
    """Write `results.json`, `results.md` and the plots below `runs`; returns the table."""
    results = collect(runs, seeds)
    drawn = plot_curves(runs, seeds[0], runs / "curves")
    plot_stages(results, runs / "curves" / "stages.png")
    text = table(results)
    write_text_file(runs / "results.md", text)
    write_json(runs / "results.json", results)
    return text + f"\n{runs / 'results.json'}, {len(drawn) + 1} plots in {runs / 'curves'}\n"
