"""One benchmark for one served model: items, answers, scores."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from cot_reward.errors import UserError, nearest
from cot_reward.evaluation.answers import read_answers
from cot_reward.evaluation.benchmarks import BENCHMARKS
from cot_reward.evaluation.benchmarks.form import Official
from cot_reward.evaluation.comparison_table import (
    few_clusters,
    percent,
    probability_in_words,
    with_interval,
)
from cot_reward.evaluation.prepare import MANIFEST, prepare, prepare_rows
from cot_reward.evaluation.settings import BenchmarkSettings
from cot_reward.evaluation.strict import MACRO, OVERALL, strict_score
from cot_reward.inference.run import infer
from cot_reward.inference.settings import InferenceSettings
from cot_reward.preparing.settings import ComparisonFiles
from cot_reward.rows.file_flags import data_files
from cot_reward.store import read_json, without_nan, write_json, write_text_file

ROWS = "rows"
SCORES = "scores.json"
TABLE = "scores.md"
_CHANCE = 0.5


def print_benchmarks() -> int:
    """Print a line for each benchmark; returns the exit code."""
    for one in BENCHMARKS.values():
        rows = ", ".join(f"{name} {count:,}" if count else name for name, count in one.rows.items())
        print(f"{one.name:<23} {one.task:<20} {one.repository:<39} {rows}")
    print(f"{ROWS:<23} {'any':<20} your own comparisons (--data)")
    return 0


def evaluate(asked: InferenceSettings, chosen: BenchmarkSettings, api_key: str) -> int:
    """Ask the served model about every item, write and print the scores; returns the exit code.

    Raises UserError, also for what `prepare` refuses. A stopped run goes on.
    """
    if asked.shard:
        raise UserError("--shard: scores of a share are no benchmark's; ask all, by more servers")
    questions = _questions(asked, chosen)
    own = replace(
        asked, data=[questions], image_root=[], labels=[], task=None, adapter=None, limit=None
    )
    code = infer(own, api_key)
    if code or asked.dry_run:
        return code
    print(write_scores(asked.out), end="")
    return 0


def _questions(asked: InferenceSettings, chosen: BenchmarkSettings) -> Path:
    roots = asked.image_root
    if chosen.benchmark == ROWS:
        if not asked.data:
            raise UserError(f"--benchmark {ROWS}: name the file of comparisons with --data")
        files = data_files(asked.data, asked.image_root)
        if len({file.image_root for file in files}) > 1:
            raise UserError(f"--benchmark {ROWS}: name one --image-root, or convert the files")
        own = ComparisonFiles(
            [file.path for file in files], media_root=asked.media_root,
            image_root=files[0].image_root,
            task=asked.task, labels=asked.labels,
        )  # fmt: skip
        return prepare_rows(own, asked.out, asked.limit)
    if chosen.benchmark not in BENCHMARKS:
        raise UserError(
            f"--benchmark: none is called '{chosen.benchmark}'."
            f"{nearest(chosen.benchmark, (*BENCHMARKS, ROWS))} --benchmark list shows all"
        )
    if asked.data:
        raise UserError("--data is for --benchmark rows; a benchmark's files are --snapshot")
    benchmark = BENCHMARKS[chosen.benchmark]
    root = roots[0] if roots else None
    return prepare(benchmark, chosen, asked.media_root, root, asked.out, asked.limit)


def write_scores(folder: Path) -> str:
    """Score a finished run by its rows alone; writes JSON and Markdown, returns the table."""
    answers, manifest = read_answers(folder), read_json(folder / MANIFEST)
    unanswered = int(answers.missing.all(axis=(1, 2)).sum())
    strict = strict_score(answers)
    benchmark = BENCHMARKS.get(manifest["benchmark"])
    official = benchmark.official(answers) if benchmark and benchmark.official else None
    scores = {
        "benchmark": manifest, "unanswered_items": unanswered, "strict": strict,
        "official": asdict(official) if official else None,
        "official_source": benchmark.source if benchmark else "",
        "assumed": benchmark.unseen if benchmark else "",
    }  # fmt: skip
    write_json(folder / SCORES, without_nan(scores))
    if benchmark and benchmark.predictions:
        name, text = benchmark.predictions(answers)
        write_text_file(folder / name, text)
    table = score_table(scores, official)
    write_text_file(folder / TABLE, table)
    return table


def _doubts(scores: Mapping[str, Any]) -> Iterator[str]:
    """Why the scores may not be what they seem."""
    manifest, overall = scores["benchmark"], scores["strict"]["groups"][OVERALL]["accuracy"]
    published, rows = manifest.get("published_rows"), manifest["rows"]
    if published and published != rows:
        yield f"Not the published benchmark: {rows:,} rows, and {published:,} were published."
    if bad := manifest.get("bad_items"):
        yield f"{bad:,} of {rows:,} rows could not be used, and are in no score."
    if beyond := manifest.get("beyond_limit"):
        yield f"{beyond:,} items are beyond --limit, and are in no score."
    if warning := few_clusters(scores["strict"]):
        yield warning
    if overall["high"] < _CHANCE:
        yield (
            "Accuracy is below chance: are the labels upside down (--labels), or is the prompt "
            "another than the model's (--template)?"
        )


def score_table(scores: Mapping[str, Any], official: Official | None) -> str:
    """The scores of a run as Markdown."""
    strict, manifest = scores["strict"], scores["benchmark"]
    name = " ".join(filter(None, (manifest["benchmark"], manifest["split"])))
    lines = [
        f"# {name}: {strict['model']}",
        "",
        f"{strict['items']:,} items ({strict['ties']:,} ties), {strict['orders']} "
        f"order{'s' if strict['orders'] > 1 else ''} of {strict['samples']} samples, "
        f"{strict['texts']:,} texts; 95% intervals (bootstrap of {strict['clusters']:,} clusters), "
        "in %. A text without an answer is wrong; ties do not count.",
        "",
        "| group | items | accuracy | right in both | vote | survives swap | answers 1 | unparsed "
        "| coherent |" + (" official |" if official else ""),
        "|---" * (9 + bool(official)) + "|",
    ]
    for group, figures in strict["groups"].items():
        of_official = ""
        if official:
            share = official.groups.get(group)
            if group == OVERALL and official.overall_is != "groups":
                share = official.overall
            if group == MACRO and official.overall_is == "groups":
                share = official.overall
            of_official = f" {percent(share)} |"
        cells = [
            group, f"{figures['accuracy']['items']:,}", with_interval(figures["accuracy"]),
            *(with_interval(figures.get(name)) for name in ("right_in_both", "vote")),
            *(percent(figures[name]["share"]) if name in figures else "-" for name in (
                "survives_swap", "answers_1", "unparsed", "coherent",
            )),
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |" + of_official)
    if official:
        counts = "".join(f"; {name} {count:,}" for name, count in official.counts.items())
        lines += ["", f"Official: {official.rule} ({scores['official_source']}){counts}."]
    lines += [f"\n**{doubt}**" for doubt in _doubts(scores)]
    if scores["assumed"]:
        lines += ["", f"Not seen here: {scores['assumed']}"]
    if len(strict["by_votes"]) > 1:
        lines += ["", "| samples | majority right | undecided | pass@k |", "|---|---|---|---|"]
        lines += [
            f"| {k} | {percent(found['right'])} | {percent(found['undecided'])} "
            f"| {percent(found['pass'])} |"
            for k, found in strict["by_votes"].items()
        ]
    if found := strict["by_probability"]:
        lines += ["", probability_in_words(found)]
    if strict["missing_texts"]:
        lines += [
            "",
            f"**{strict['missing_texts']:,} texts are missing** (failed requests), "
            f"{scores['unanswered_items']:,} items have none; `--retry-failed` asks again.",
        ]
    return "\n".join(lines) + "\n"
