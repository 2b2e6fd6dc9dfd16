"""Benchmarks: small files in their columns, asked of a server, and scored."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cot_reward import settings
from cot_reward.errors import UserError
from cot_reward.evaluation.answers import read_answers
from cot_reward.evaluation.benchmarks import BENCHMARKS
from cot_reward.evaluation.benchmarks.vl_rewardbench import group_of
from cot_reward.evaluation.compare import compare, read_runs
from cot_reward.evaluation.items import read_items
from cot_reward.evaluation.run import evaluate
from cot_reward.evaluation.settings import BenchmarkSettings
from cot_reward.inference.settings import InferenceSettings
from helpers.benchmarks import answers_of, benchmark_files, random_answers
from helpers.rows import read_lines, write_lines
from helpers.server import MockServer

# Of each benchmark: how many items its small file has, how many of them are ties.
ITEMS = {
    "vl-rewardbench": (6, 0), "genai-bench-image": (4, 2), "genai-bench-video": (3, 1),
    "genai-bench-edit": (3, 1), "videogen-rewardbench": (3, 1), "multimodal-rewardbench": (5, 0),
    "mmrb2-image": (3, 0), "mmrb2-edit": (3, 0), "mj-bench": (4, 0),
}  # fmt: skip


@pytest.fixture(scope="module")
def server():
    with MockServer() as running:
        yield running


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return benchmark_files(tmp_path_factory.mktemp("benchmarks") / "media")


def run(server: MockServer, root: Path, out: Path, *flags: object) -> int:
    (root / "empty.yaml").write_text("data: []")
    argv = ["--config", root / "empty.yaml", "--media-root", root, "--base-url", server.url,
            "--out", out, "--min-parsed", 0, "--max-failed", 1, *flags]  # fmt: skip
    asked, chosen = settings.parse_several(
        (InferenceSettings, BenchmarkSettings), "", argv=list(map(str, argv))
    )
    return evaluate(asked, chosen, "none")


@pytest.mark.parametrize("name", list(BENCHMARKS))
def test_a_benchmark_from_its_files_to_its_scores(
    server: MockServer, files: dict[str, Path], tmp_path: Path, name: str
) -> None:
    root, out = files[name].parent, tmp_path / name
    server.configure()
    flags = ["--benchmark", name, "--snapshot", files[name], "--num-samples", 3, "--frames", 2]
    if BENCHMARKS[name].rows[next(iter(BENCHMARKS[name].rows))]:
        with pytest.raises(UserError, match=r"rows, and .* is published with"):
            run(server, root, out, *flags)
    assert run(server, root, out, *flags, "--any-rows") == 0
    items = read_items(out / "items.jsonl")
    manifest, scores = (
        json.loads((out / f"{n}.json").read_text()) for n in ("benchmark", "scores")
    )
    assert (len(items), sum(item.better == 0 for item in items)) == ITEMS[name]
    assert manifest["items"] == len(items)
    assert scores["strict"]["texts"] == len(items) * 2 * 3
    # Of each item: the share of texts that name the better candidate, by the rows alone.
    rows = [
        row
        for file in ("correct", "incorrect", "unusable")
        for row in read_lines(out / f"{file}.jsonl")
    ]
    shares = []
    for item in items:
        own = [row for row in rows if row["id"] == item.key]
        assert len(own) == 6
        named = [shown_as(row, item.candidates) for row in own]
        if item.better:
            shares.append(np.mean([pick == item.better for pick in named]))
    overall = scores["strict"]["groups"]["overall"]["accuracy"]
    assert overall["share"] == pytest.approx(np.mean(shares))
    assert overall["items"] == len(shares)
    if name == "mmrb2-image":
        assert manifest["no_items"] == 1
    # A finished run says the same again, without a request.
    server.configure()
    assert run(server, root, out, *flags, "--any-rows") == 0
    assert server.log() == []
    with pytest.raises(UserError, match="holds another benchmark, or other rows"):
        run(server, root, out, *flags, "--any-rows", "--limit", 1)


def shown_as(row: dict[str, Any], candidates: list[Any]) -> int:
    """The candidate of an item that a text names, found in what was shown; 0 without an answer."""
    if not row["answer"]:
        return 0
    prompt = row["conversations"][0]["value"]
    if "Answer 1: [" in prompt:
        shown_first = f"Answer 1: [{candidates[0]}]" in prompt
    else:
        media = candidates[0] if isinstance(candidates[0], list) else [candidates[0]]
        count = len(media)
        shown_first = row["images"][-2 * count : -count] == media
    return int(row["answer"] if shown_first else 3 - row["answer"])


def test_labels_are_read_as_the_benchmarks_mean_them(
    server: MockServer, files: dict[str, Path], tmp_path: Path
) -> None:
    wanted = {
        "vl-rewardbench": [1, 2, 1, 2, 1, 2], "genai-bench-image": [1, 2, 0, 0],
        "videogen-rewardbench": [1, 2, 0], "multimodal-rewardbench": [1, 2, 1, 2, 1],
        "mmrb2-edit": [1, 2, 1], "mj-bench": [1, 2, 1, 2],
    }  # fmt: skip
    server.configure()
    for name, better in wanted.items():
        out = tmp_path / name
        flags = ["--benchmark", name, "--snapshot", files[name], "--any-rows", "--frames", 2]
        assert run(server, files[name].parent, out, *flags, "--num-samples", 1) == 0
        assert [item.better for item in read_items(out / "items.jsonl")] == better


def test_the_groups_of_vl_rewardbench_are_the_official_ones() -> None:
    """The ids that upstream's scripts take for "general" are hallucination."""
    groups = {"hallucination_pair-7": "hallucination", "RLAIF-V-1": "hallucination",
              "RLHF-V_9": "hallucination", "mathverse_3": "reasoning", "mmmu_1": "reasoning",
              "wildvision-battle_1": "general", "VLFeedback-5": "general"}  # fmt: skip
    assert {name: group_of(name) for name in groups} == groups


OFFICIAL = [one for one in BENCHMARKS.values() if one.official]


@pytest.mark.parametrize("benchmark", OFFICIAL, ids=[one.name for one in OFFICIAL])
@pytest.mark.parametrize("seed", range(5))
def test_an_official_overall_follows_from_its_groups(benchmark: Any, seed: int) -> None:
    answers = random_answers(seed, ties="genai" in benchmark.name or "gen-" in benchmark.name)
    found = benchmark.official(answers)
    groups = {name: [i for i, item in enumerate(answers.items) if item.group == name]
              for name in found.groups}  # fmt: skip
    counted = {name: benchmark.official(answers.take(np.array(of))) for name, of in groups.items()}
    if "coin" not in found.rule and "random" not in found.rule:
        assert found.groups == pytest.approx({name: one.overall for name, one in counted.items()})
    low, high = min(found.groups.values()), max(found.groups.values())
    assert low - 1e-9 <= found.overall <= high + 1e-9


def test_official_rules_on_answers_made_by_hand() -> None:
    def score(name: str, picks: Any, better: Any = None) -> Any:
        rule = BENCHMARKS[name].official
        assert rule
        return rule(answers_of(picks, better))

    # One sample, the better candidate is 1: right, wrong, and no answer in the given order.
    one = [[[1], [2]], [[2], [1]], [[0], [1]], [[1], [1]]]
    assert score("genai-bench-image", one).overall == 2 / 4
    assert score("genai-bench-image", one, [1, 1, 1, 0]).overall == 1 / 4
    videos = score("videogen-rewardbench", one, [1, 1, 1, 0])
    assert (videos.overall, videos.counts) == (1 / 3, {"the same": 1, "without an answer": 1})
    # Texts, not items: 7 have an answer, and 5 of them are right.
    assert score("mmrb2-image", one).overall == 5 / 7
    # The first draw of the scorer's generator (seed 123) is 0.052: candidate 1.
    coin = score("multimodal-rewardbench", one)
    assert (coin.overall, coin.counts) == (3 / 4, {"decided by the coin": 1})
    # Both orders agree, so that the order does not matter: right, wrong, undecided, a text without
    # an answer.
    votes = [[[1, 1, 2]] * 2, [[2, 2, 1]] * 2, [[1, 2, 0]] * 2]
    three = score("vl-rewardbench", votes)
    assert three.overall == 1 / 2
    assert three.counts == {
        "left out (a text without an answer)": 1, "left out (undecided)": 0,
    }  # fmt: skip
    assert score("vl-rewardbench", [[[1, 2]] * 2, [[1, 1]] * 2]).counts["left out (undecided)"] == 1


def test_predictions_are_in_the_form_of_the_official_scorers() -> None:
    """Counted as these scorers count: by our official score and by theirs the same."""
    answers = random_answers(3, groups=["safety/bias", "vqa"], samples=1)
    found = {}
    for name in ("multimodal-rewardbench", "mmrb2-image", "genai-bench-image"):
        benchmark = BENCHMARKS[name]
        assert benchmark.predictions
        assert benchmark.official
        file, text = benchmark.predictions(answers)
        found[name] = (file, text, benchmark.official(answers).overall)
    file, text, overall = found["mmrb2-image"]
    assert file == "predictions.json"
    hits = []
    for item in answers.items:
        of_item = json.loads(text)[item.name]
        forward, reverse = (of_item[k][0]["judgement"] for k in ("forward", "reverse"))
        chosen = "AB"[item.better - 1]
        hits += [forward == chosen] if forward else []
        hits += [{"A": "B", "B": "A"}[reverse] == chosen] if reverse else []
    assert overall == pytest.approx(np.mean(hits))
    file, text, overall = found["multimodal-rewardbench"]
    rows = [json.loads(line) for line in text.splitlines()]
    assert {row["Meta"]["Category"] for row in rows} == {"safety", "vqa"}
    coin = random.Random(123)
    said = [
        "A" if "[[A]]" in row["output"] else "B" if "[[B]]" in row["output"]
        else "A" if coin.random() < 0.5 else "B"
        for row in rows
    ]  # fmt: skip
    right = [one == row["Label"] for one, row in zip(said, rows, strict=True)]
    assert overall == pytest.approx(np.mean(right))
    file, text, overall = found["genai-bench-image"]
    assert file == "pairwise.json"
    assert overall == pytest.approx(np.mean([row["correct"] for row in json.loads(text)]))


def test_bad_rows_are_told_and_not_left_out_quietly(
    server: MockServer, files: dict[str, Path], tmp_path: Path, capsys: Any
) -> None:
    root = files["mj-bench"].parent
    rows = [
        {"caption": "a", "image0": "0.png", "image1": "1.png", "label": 0},
        {"caption": "b", "image0": "0.png", "image1": "gone.png", "label": 0},
        {"caption": "c", "image0": "0.png", "image1": "1.png", "label": "x"},
    ]
    file = write_lines(tmp_path / "bad.jsonl", rows)
    server.configure()
    flags = ["--benchmark", "mj-bench", "--snapshot", file, "--num-samples", 1]
    with pytest.raises(UserError, match="2 of 3 rows of mj-bench cannot be used"):
        run(server, root, tmp_path / "out", *flags)
    told = capsys.readouterr().err
    assert "no such file" in told
    assert "'label' is 'x'; it must be 0, 1" in told
    assert len(read_lines(tmp_path / "out/bad_items.jsonl")) == 2
    assert run(server, root, tmp_path / "out", *flags, "--allow-bad-items") == 0
    for wrong, message in (
        (["--benchmark", "mjbench"], "none is called 'mjbench'. Did you mean 'mj-bench'"),
        (["--split", "gone"], "mj-bench has alignment, safety"),
        (["--data", file], "--data is for --benchmark rows"),
        (["--benchmark", "rows"], "name the file of comparisons with --data"),
    ):
        with pytest.raises(UserError, match=message):
            run(server, root, tmp_path / "other", *flags, *wrong)


def test_a_benchmark_by_name_comes_through_datasets(
    server: MockServer, files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder on disk in place of a name on the hub; its pictures are those of the files."""
    name = "vl-rewardbench"
    repository = tmp_path / "hub/vl"
    (repository / "data").mkdir(parents=True)
    (repository / "data/test-00000-of-00001.parquet").write_bytes(files[name].read_bytes())
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    local = replace(BENCHMARKS[name], repository=str(repository))
    monkeypatch.setitem(BENCHMARKS, name, local)
    server.configure()
    root = files[name].parent
    flags = ["--benchmark", name, "--any-rows", "--num-samples", 1]
    assert run(server, root, tmp_path / "hub_out", *flags) == 0
    assert run(server, root, tmp_path / "files", *flags, "--snapshot", files[name]) == 0
    one, other = (json.loads((tmp_path / out / "benchmark.json").read_text())
                  for out in ("hub_out", "files"))  # fmt: skip
    assert one == other
    monkeypatch.setitem(BENCHMARKS, name, replace(local, repository=str(tmp_path / "gone")))
    with pytest.raises(UserError, match=r"cannot be loaded .* name its files with --snapshot"):
        run(server, root, tmp_path / "gone_out", *flags)


def test_probabilities_of_answers_are_those_of_candidates(
    server: MockServer, files: dict[str, Path], tmp_path: Path
) -> None:
    """The server's answers have a chance of 0.8 each, in both orders."""
    name = "vl-rewardbench"
    server.configure()
    flags = ["--benchmark", name, "--snapshot", files[name], "--any-rows", "--num-samples", 3]
    assert run(server, files[name].parent, tmp_path / "out", *flags, "--answer-probability") == 0
    assert {entry["top_logprobs"] for entry in server.log()} == {5}
    answers = read_answers(tmp_path / "out")
    picks, found = answers.picks, answers.probability
    assert found[picks == 1] == pytest.approx(0.8)
    assert found[picks == 2] == pytest.approx(0.2)
    rows = read_lines(tmp_path / "out/correct.jsonl")
    assert {round(row["probability"], 6) for row in rows} == {0.8, 0.2}
    scores = json.loads((tmp_path / "out/scores.json").read_text())
    assert scores["strict"]["by_probability"]["items"] > 0
    assert (
        "By the probability of the answer (both orders): "
        in (tmp_path / "out/scores.md").read_text()
    )
    # Without the flag rows have no such column.
    assert run(server, files[name].parent, tmp_path / "plain", *flags) == 0
    assert all("probability" not in row for row in read_lines(tmp_path / "plain/correct.jsonl"))


def test_scores_that_are_not_what_they_seem_say_so(
    server: MockServer, files: dict[str, Path], tmp_path: Path, capsys: Any
) -> None:
    """Labels upside down, a part of a benchmark, pictures that were replaced."""
    root = tmp_path / "media"
    benchmark_files(root)
    fault = {"kind": "text", "text": "<think>Total: Image 1: 9, Image 2: 6</think>"
             "<answer>Image 1 is better</answer>"}  # fmt: skip
    server.configure(faults=[fault])
    data = write_lines(tmp_path / "own.jsonl", [
        {"task": "image_generation", "text": f"cat {n}", "label": 1,
         "candidates": ["raw/0.png", "raw/1.png"]} for n in range(30)
    ])  # fmt: skip
    (root / "raw").mkdir()
    for name in ("0.png", "1.png"):
        (root / "raw" / name).write_bytes((root / name).read_bytes())
    flags = ["--data", data, "--orders", "given", "--num-samples", 1]
    assert run(server, root, tmp_path / "right", *flags) == 0
    assert "Accuracy is below chance" not in capsys.readouterr().out
    assert run(server, root, tmp_path / "turned", *flags, "--labels", "1=2", "2=1") == 0
    assert "**Accuracy is below chance: are the labels upside down" in capsys.readouterr().out
    # The root of a file may stand beside its name.
    flags = ["--data", f"{data}@{root}", *flags[2:], "--limit", 7]
    assert run(server, root, tmp_path / "part", *flags) == 0
    table = (tmp_path / "part/scores.md").read_text()
    assert table.startswith("# rows: mock\n\n7 items (0 ties), 1 order of 1 samples")
    flags = ["--benchmark", "vl-rewardbench", "--snapshot", files["vl-rewardbench"], "--any-rows"]
    assert run(server, files["mj-bench"].parent, tmp_path / "vl", *flags, "--limit", 4) == 0
    table = (tmp_path / "vl/scores.md").read_text()
    assert "**Not the published benchmark: 6 rows, and 1,250 were published.**" in table
    assert "**2 items are beyond --limit, and are in no score.**" in table
    # The same names, another picture.
    (root / "raw/0.png").write_bytes((root / "5.png").read_bytes())
    with pytest.raises(UserError, match="other rows or media of this one"):
        run(server, root, tmp_path / "right", "--data", data, "--orders", "given")
    assert run(server, root, tmp_path / "new", "--data", data, "--orders", "given") == 0
    with pytest.raises(UserError, match="the media or rows of rows were not the same"):
        compare(read_runs([tmp_path / "right", tmp_path / "new"]))
    (root / "raw/0.png").unlink()
    with pytest.raises(UserError, match="no such file"):
        run(server, root, tmp_path / "gone", "--data", data)


def test_rows_of_ones_own_are_a_benchmark(
    server: MockServer, files: dict[str, Path], tmp_path: Path
) -> None:
    root = files["mj-bench"].parent
    data = write_lines(tmp_path / "own.jsonl", [
        {"task": "image_generation", "text": f"cat {n}", "label": 1 + n % 2,
         "candidates": [f"{n}.png", f"{n + 1}.png"]} for n in range(4)
    ] + [  # The first one again, the other way round.
        {"task": "image_generation", "text": "cat 0", "label": 2, "candidates": ["1.png", "0.png"]}
    ])  # fmt: skip
    server.configure()
    assert run(server, root, tmp_path / "out", "--data", data, "--num-samples", 2) == 0
    scores = json.loads((tmp_path / "out/scores.json").read_text())
    assert (scores["strict"]["items"], scores["official"]) == (5, None)
    items = read_items(tmp_path / "out/items.jsonl")
    assert [item.asked_label for item in items] == [1, 2, 1, 2, 2]
    assert items[0].key == items[4].key
    assert len(read_lines(tmp_path / "out/questions.jsonl")) == 4
    assert items[0].cluster == items[4].cluster == "cat 0"
