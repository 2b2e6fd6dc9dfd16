"""The watch on a training: does a model write worse than the model that it was trained from?

The curves of DPO do not tell. In runs of the demo that lost 8 points of accuracy, the reward
accuracy of the pairs was the highest of all. So both models answer the same comparisons, and the
judged answers are compared.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cot_reward.errors import UserError
from cot_reward.evaluation.collect import MAX_UNSHARED
from cot_reward.evaluation.finished import judged_rows
from cot_reward.stats import bootstrap_mean, paired_difference
from cot_reward.store import write_json

# Name of a figure -> its title. Each is a share; accuracy counts any fall that is no chance, the
# others one of more than `TOLERANCE`.
FIGURES = {
    "accuracy": "accuracy",
    "well_formed": "well-formed",
    "coherent": "coherent",
    "survives_swap": "survives a swap",
}
TOLERANCE = 0.01
# Exit code of the script when the model has become worse.
WORSE = 4
# Settings of an inference that both must share; the comparisons and orders are compared as such.
_SAME_SETTINGS = (
    "temperature", "top_p", "max_tokens", "sampling_defaults", "image_max_pixels", "templates",
    "structured_output",
)  # fmt: skip


def compare(before: Path, after: Path) -> dict[str, Any]:
    """Compare two inferences over the same comparisons: figures, differences, and what fell.

    Both are folders of the client. A difference is after - before, the mean over comparisons, with
    its 95% interval (bootstrap). `left_out` counts comparisons that one of the two has not whole.
    Raises UserError when the two cannot be compared: other comparisons, orders, numbers of texts or
    sampling settings, or the same weights.
    """
    _check_settings(before, after)
    first, second = (_values(judged_rows(folder)) for folder in (before, after))
    asked = first["texts"].keys() | second["texts"].keys()
    # A request that failed in one of the two takes its comparison out of both.
    shared = {key for key in asked if first["texts"].get(key) == second["texts"].get(key)}
    if len(shared) < (1 - MAX_UNSHARED) * len(asked) or not shared:
        raise UserError(
            f"{before} and {after} have other texts about {len(asked) - len(shared):,} of "
            f"{len(asked):,} comparisons (another comparison, order or number); let both models "
            "answer the same data with the same --num-samples"
        )
    for values in (first, second):
        for name, of_comparison in values.items():
            values[name] = {key: of_comparison[key] for key in of_comparison if key in shared}
    figures = {name: _difference(first[name], second[name]) for name in FIGURES}
    figures["answers_1"] = _difference(first["answers_1"], second["answers_1"])
    fell = [
        title
        for name, title in FIGURES.items()
        if figures[name]["high"] < (0 if name == "accuracy" else -TOLERANCE)
    ]
    if _leans_more(first["answers_1"], second["answers_1"]):
        fell.append("balance of positions")
    return {
        "before": str(before),
        "after": str(after),
        "comparisons": len(shared),
        "texts": sum(first["texts"].values()),
        "left_out": len(asked) - len(shared),
        "figures": figures,
        "fell": fell,
    }


def watch(before: Path, after: Path, out: Path) -> int:
    """Compare, write `out`, and print what a person needs; returns the exit code."""
    result = compare(before, after)
    write_json(out, result)
    print(
        f"{after} less {before}: {result['comparisons']:,} comparisons, {result['texts']:,} texts"
    )
    for name, title in (FIGURES | {"answers_1": 'answers "1"'}).items():
        figure = result["figures"][name]
        print(
            f"  {title:16} {100 * figure['before']:5.1f} -> {100 * figure['after']:5.1f}  "
            f"{100 * figure['difference']:+.1f} "
            f"[{100 * figure['low']:+.1f}, {100 * figure['high']:+.1f}]"
        )
    if result["fell"]:
        print(f"worse: {', '.join(result['fell'])}")
        return WORSE
    print("not worse")
    return 0


def _check_settings(before: Path, after: Path) -> None:
    # Runs from before the flag existed had none.
    there, here = ({"structured_output": "off"} | _settings(each) for each in (before, after))
    for name in _SAME_SETTINGS:
        if there.get(name) != here.get(name):
            raise UserError(
                f"{before} and {after} were sampled differently: {name} is {there.get(name)!r} "
                f"and {here.get(name)!r}; they cannot be compared"
            )
    weights = [settings.get("served_model", {}).get("weights") for settings in (there, here)]
    if before.resolve() == after.resolve() or (weights[0] and weights[0] == weights[1]):
        raise UserError(f"{before} and {after} are answers of the same model")


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / "settings.json"
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path}: not the settings of an inference ({error})") from None


def _values(rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Figure -> comparison -> share; and "texts" -> comparison -> number of texts."""
    by_comparison: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        by_comparison[row["id"]].append(row)
    values: dict[str, dict[str, Any]] = {
        name: {} for name in ("texts", *FIGURES, "answers_1")
    }  # fmt: skip
    for key, group in by_comparison.items():
        values["texts"][key] = len(group)
        answers = [row["answer"] for row in group if row["answer"]]
        values["accuracy"][key] = _share(row["verdict"] == "correct" for row in group)
        values["well_formed"][key] = len(answers) / len(group)
        values["coherent"][key] = _share(row["coherence"] == "coherent" for row in group)
        if answers:
            values["answers_1"][key] = _share(answer == 1 for answer in answers)
        by_sample: dict[int, dict[str, str]] = defaultdict(dict)
        for row in group:
            by_sample[row["sample"]][row["order"]] = row["verdict"]
        both = [set(orders.values()) for orders in by_sample.values() if len(orders) == 2]
        if both:
            survived = ({"correct"}, {"incorrect"})
            values["survives_swap"][key] = _share(verdicts in survived for verdicts in both)
    return values


def _share(hits: Iterable[bool]) -> float:
    counted = list(hits)
    return sum(counted) / len(counted)


def _difference(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    keys = sorted(before.keys() & after.keys())
    if not keys:
        nothing = dict.fromkeys(("before", "after", "difference", "low", "high"), 0.0)
        return nothing | {"units": 0}
    first, second = ([values[key] for key in keys] for values in (before, after))
    means = {"before": sum(first) / len(keys), "after": sum(second) / len(keys)}
    return means | paired_difference(second, first)


def _leans_more(before: Mapping[str, float], after: Mapping[str, float]) -> bool:
    """Whether the answers lean to one position by more than `TOLERANCE` more than before.

    Both orders of each comparison are asked, so that a model without a lean answers 1 in half.
    """
    keys = sorted(before.keys() & after.keys())
    if not keys:
        return False
    lean = sum(after[key] for key in keys) / len(keys) - 0.5
    sign = 1 if lean > 0 else -1
    # How much further to this side, and how much further than the earlier lean to the other side.
    one_side = [sign * (after[key] - before[key]) for key in keys]
    other_side = [sign * (after[key] + before[key] - 1) for key in keys]
    return all(bootstrap_mean(deltas)[0] > TOLERANCE for deltas in (one_side, other_side))
