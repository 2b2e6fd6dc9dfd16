"""A comparison of models as Markdown, with published figures beside it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cot_reward.evaluation.clusters import FEW_CLUSTERS
from cot_reward.evaluation.strict import MACRO, OVERALL

# What an overall may differ from its groups by rounding: half of the last digit that is printed.
_ROUNDING = 0.0011


def comparison_table(found: Mapping[str, Any], published: Mapping[str, Any] | None = None) -> str:
    """The result of `compare`; `published` is the content of configs/published.yaml."""
    lines: list[str] = []
    for benchmark, one in found.items():
        lines += [f"## {benchmark}", ""]
        if one["left_out"]:
            lines += [
                f"**{one['left_out']:,} items are left out**: not all models have a text.",
                "",
            ]
        lines += [*_scores(one), ""]
        if one["differences"]:
            lines += [*_differences(one["differences"]), ""]
        if figures := (published or {}).get(benchmark.split()[0]):
            lines += [*_published(figures), ""]
    return "\n".join(lines)


def _scores(one: Mapping[str, Any]) -> Iterator[str]:
    models = one["models"]
    first = next(iter(models.values()))
    groups = list(first["groups"])
    yield (
        f"{first['items']:,} items, {first['ties']:,} ties. Accuracy in %: both orders, a text "
        "without an answer is wrong, ties do not count; 95% intervals by drawing "
        f"{first['clusters']:,} clusters of items."
    )
    if warning := few_clusters(first):
        yield ""
        yield f"**{warning}**"
    yield ""
    yield (
        "| model | texts | " + " | ".join(groups)
        + " | right in both | vote | survives swap | answers 1 | unparsed | coherent | characters |"
    )  # fmt: skip
    yield "|---" * (len(groups) + 9) + "|"
    for model, score in models.items():
        overall = score["groups"][OVERALL]
        cells = [
            model, f"{score['texts']:,}",
            *(with_interval(score["groups"][group]["accuracy"]) for group in groups),
            with_interval(overall.get("right_in_both")), with_interval(overall["vote"]),
            *(percent(overall[name]["share"]) if name in overall else "-" for name in (
                "survives_swap", "answers_1", "unparsed", "coherent",
            )),
            f"{score['mean_characters']:,.0f}",
        ]  # fmt: skip
        yield "| " + " | ".join(cells) + " |"
    if official := one["official"]:
        rule = next(iter(official.values()))
        yield ""
        yield f"By the benchmark's own rule ({rule['rule']}), in %:"
        yield ""
        names = list(rule["groups"])
        yield "| model | " + " | ".join([*names, "overall"]) + " |"
        yield "|---" * (len(names) + 2) + "|"
        for model, score in official.items():
            shares = [*(score["groups"][name] for name in names), score["overall"]]
            yield f"| {model} | " + " | ".join(map(percent, shares)) + " |"
    for model, score in models.items():
        if score["by_probability"]:
            yield ""
            yield f"{model}: {probability_in_words(score['by_probability'])}"
    votes = {model: score["by_votes"] for model, score in models.items()}
    ks = sorted({int(k) for found in votes.values() for k in found})
    if len(ks) > 1:
        yield ""
        yield "Majority of k samples in both orders: right / undecided, and pass@k, in %:"
        yield ""
        yield "| model | " + " | ".join(f"k = {k}" for k in ks) + " |"
        yield "|---" * (len(ks) + 1) + "|"
        for model, found in votes.items():
            shown = [found.get(str(k)) for k in ks]
            cells = [
                " / ".join(percent(cell[name]) for name in ("right", "undecided", "pass"))
                if cell
                else "-"
                for cell in shown
            ]
            yield f"| {model} | " + " | ".join(cells) + " |"


def few_clusters(score: Mapping[str, Any]) -> str:
    """A warning about intervals of few clusters, "" for enough of them."""
    if score["clusters"] >= FEW_CLUSTERS:
        return ""
    return (
        f"The items are of {score['clusters']:,} clusters only (questions about one image, or "
        "media of one caption, are one cluster): the intervals are too narrow to be trusted."
    )


def probability_in_words(found: Mapping[str, Any]) -> str:
    """Accuracy by the probability of the answer, and its calibration."""
    return (
        f"By the probability of the answer (both orders): {percent(found['accuracy'])}% right of "
        f"{found['items']:,} items, calibration error {percent(found['error'])} points."
    )


def _differences(differences: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    groups = list(differences[0]["groups"])
    yield (
        "Differences in accuracy in points, with 95% intervals (paired, by clusters). p is of "
        "McNemar's exact test on the votes (items gained and lost), corrected for all tests here "
        "(Holm); a true difference below the last column would mostly not be found here."
    )
    yield ""
    yield (
        "| from | to | " + " | ".join(groups) + " | gained | lost | p | p, corrected "
        "| can be found from |"
    )
    yield "|---" * (len(groups) + 7) + "|"
    for entry in differences:
        cells = [
            entry["before"], entry["after"],
            *(points(entry["groups"][group]) for group in groups),
            f"{entry['gained']:,}", f"{entry['lost']:,}",
            p_value(entry["p"]), p_value(entry["p_holm"]),
            percent(entry["groups"][OVERALL]["detectable"]),
        ]  # fmt: skip
        yield "| " + " | ".join(cells) + " |"


def _published(figures: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    names = list(dict.fromkeys(name for figure in figures for name in figure["shares"]))
    yield "Published figures, in %, by the rules of their authors:"
    yield ""
    yield "| model | base | " + " | ".join(names) + " | source | |"
    yield "|---" * (len(names) + 4) + "|"
    for figure in figures:
        shares = figure["shares"]
        cells = [f"{shares[name]:.1f}" if name in shares else "-" for name in names]
        doubt = contradiction(shares, figure.get("items"))
        yield (
            f"| {figure['model']} | {figure.get('base', '-')} | " + " | ".join(cells)
            + f" | {figure['source']} | {doubt} |"
        )  # fmt: skip


def contradiction(shares: Mapping[str, float], items: Mapping[str, int] | None) -> str:
    """Why an overall or macro does not follow from its groups; "" where it does, or may.

    `shares` are in %, `items` the number of items of each group.
    """
    groups = {name: value for name, value in shares.items() if name not in (OVERALL, MACRO)}
    if not items or set(groups) != set(items):
        return ""
    expected = {
        OVERALL: sum(groups[name] * items[name] for name in items) / sum(items.values()),
        MACRO: sum(groups.values()) / len(groups),
    }
    told = [
        f"{name} {shares[name]:.1f} does not follow from the groups ({expected[name]:.1f})"
        for name in (OVERALL, MACRO)
        if name in shares and abs(shares[name] - expected[name]) > 100 * _ROUNDING
    ]
    return "; ".join(told)


def percent(share: float | None) -> str:
    """A share in %, "-" for none."""
    return "-" if share is None or share != share else f"{100 * share:.1f}"


def with_interval(figure: Mapping[str, float] | None) -> str:
    """A share with its interval in %, "-" for none."""
    if figure is None or figure["share"] != figure["share"]:
        return "-"
    return f"{percent(figure['share'])} [{percent(figure['low'])}, {percent(figure['high'])}]"


def points(difference: Mapping[str, float]) -> str:
    """A difference with its interval in points, "-" for none."""
    if difference["difference"] != difference["difference"]:
        return "-"
    low, high = 100 * difference["low"], 100 * difference["high"]
    return f"{100 * difference['difference']:+.1f} [{low:+.1f}, {high:+.1f}]"


def p_value(value: float) -> str:
    """A p-value for a table."""
    return f"{value:.4f}" if value >= 0.0001 else "< 0.0001"
