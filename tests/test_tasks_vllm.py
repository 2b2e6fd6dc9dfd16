"""Video, editing, answers and the form `json` from raw rows to DPO rows, on a real vLLM."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cot_reward import RewardModel, settings
from cot_reward.inference.run import infer
from cot_reward.inference.settings import InferenceSettings
from cot_reward.pairing.run import merge
from cot_reward.pairing.settings import MergeSettings
from cot_reward.preparing.convert import convert
from cot_reward.preparing.settings import ConvertSettings
from cot_reward.records import Form, as_tuple
from cot_reward.rows.adapters import adapter_for
from cot_reward.rows.checking import check_files
from cot_reward.tasks import TASKS
from cot_reward.tasks.prompts import render, shown_media
from helpers.parrot import Lesson, save_parrot
from helpers.pictures import picture
from helpers.rows import read_lines, write_lines
from helpers.serving import RealServer, needs_vllm
from helpers.texts import cot
from helpers.videos import video

pytestmark = [pytest.mark.slow, needs_vllm]

FRAMES = 3
COUNT = 4
# Task and form of a case, and the columns of its raw rows.
CASES: dict[str, tuple[str, Form, list[str]]] = {
    "video": ("video_generation", "think", ["first=v", "second=w"]),
    "editing": ("image_editing", "think", ["first=a", "second=b", "context=c"]),
    "answers": ("image_understanding", "think", ["first=x", "second=y", "context=a"]),
    "json": ("image_generation", "json", ["first=a", "second=b"]),
}


def target(task: str, form: Form, answer: int) -> str:
    noun, better, worse = TASKS[task].noun, 9, 4
    scores = (better, worse) if answer == 1 else (worse, better)
    if form == "think":
        return cot((scores[0], 7), (scores[1], 7), answer, noun)
    points = (6, 4) if answer == 1 else (4, 6)
    dimension = {"name": "d", "scores": {f"{noun} {n}": s for n, s in enumerate(points, 1)}}
    category = {"name": "c", "dimensions": [dimension]}
    return json.dumps({"categories": [category], "winner": f"{noun} {answer}"})


def parsed(cls: type[Any], *flags: object) -> Any:
    return settings.parse(cls, "", argv=list(map(str, flags)))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A server of a model that answers every case in its form, right or wrong by chance."""
    home = tmp_path_factory.mktemp("tasks")
    root = home / "media"
    for number in range(COUNT):
        for place, name in enumerate("abc"):
            picture(root / f"raw/{name}{number}.png", (40 * number, 60 * place, 90), size=56)
        for place, name in enumerate("vw"):
            shades = range(40 * number, 40 * number + 9)
            video(root / f"raw/{name}{number}.mp4", [shade + 50 * place for shade in shades])
    rows = [
        {"text": f"caption {n}", "label": 1 + n % 2, "x": f"A cat {n}.", "y": f"A dog {n}."}
        | {name: f"raw/{name}{n}.png" for name in "abc"}
        | {name: f"raw/{name}{n}.mp4" for name in "vw"}
        for n in range(COUNT)
    ]
    raw = write_lines(home / "raw.jsonl", rows)
    lessons = []
    for name, (task, form, columns) in CASES.items():
        assert convert(parsed(
            ConvertSettings, raw, "--task", task, "--map", "text=text", "label=label", *columns,
            "--media-root", root, "--out", root / name, "--frames", FRAMES, "--max-pixels", 3136,
        )) == 0  # fmt: skip
        plain = read_lines(root / name / "rows-00000.jsonl")
        for row in plain[:2]:
            comparison = adapter_for(row, None)(row, "")
            prompt = render(comparison, "given", TASKS[task].templates[form])
            images = [root / path for path in shown_media(comparison, "given")]
            lessons += [Lesson(prompt, images, target(task, form, answer)) for answer in (1, 2)]
    model = save_parrot(home / "model", lessons)
    server = RealServer(
        model, root, "--max-model-len", "4096", "--limit-mm-per-prompt", '{"image":6}'
    )
    server.start()
    yield SimpleNamespace(root=root, home=home, url=server.url)
    server.stop()


def ask(served: SimpleNamespace, name: str, out: Path, *flags: object) -> int:
    """The client's run of a case."""
    config = served.root / "empty.yaml"
    config.write_text("")
    return infer(parsed(
        InferenceSettings, "--config", config, "--media-root", served.root, "--base-url",
        served.url, "--data", served.root / name / "rows-00000.jsonl", "--out", out, "--form",
        CASES[name][1], "--max-tokens", 400, *flags,
    ), api_key="none")  # fmt: skip


@pytest.mark.parametrize("name", list(CASES))
def test_a_case_from_raw_rows_to_dpo_rows(served: SimpleNamespace, name: str) -> None:
    task, form, _ = CASES[name]
    root, out = served.root, served.home / f"out_{name}"
    # The two texts that the model has learned stay as likely, and its slips grow rare.
    assert ask(served, name, out, "--num-samples", 8, "--temperature", 0.5) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["account"]["judged"] == COUNT * 2 * 8
    assert summary["well_formed"]["share"] > 0.8
    assert 0.2 < summary["accuracy"]["share"] < 0.8
    pairs = root / f"{name}_dpo"
    assert merge(parsed(
        MergeSettings, "--correct", out / "correct.jsonl", "--incorrect", out / "incorrect.jsonl",
        "--media-root", root, "--out", pairs,
    )) == 0  # fmt: skip
    made = read_lines(pairs / "train.jsonl")
    assert made
    assert {(row["task"], row["form"]) for row in made} == {(task, form)}
    assert check_files([pairs / "train.jsonl"], root, workers=1).problems == []


@pytest.mark.parametrize("name", list(CASES))
def test_a_reward_model_gives_the_texts_of_the_client(served: SimpleNamespace, name: str) -> None:
    task, form, _ = CASES[name]
    out = served.home / f"greedy_{name}"
    assert ask(served, name, out, "--num-samples", 1, "--temperature", 0) == 0
    written = {
        (row["id"], row["order"]): (row["conversations"][1]["value"], row["answer"])
        for file in ("correct", "incorrect", "unusable")
        for row in read_lines(out / f"{file}.jsonl")
    }
    wanted, items = [], []
    for row in read_lines(served.root / name / "rows-00000.jsonl"):
        comparison = adapter_for(row, None)(row, "")
        wanted.append([written[comparison.key, order] for order in ("given", "swapped")])
        items.append((comparison.text, *comparison.candidates, comparison.context))
    with RewardModel(served.url, task=task, form=form, max_tokens=400) as model:
        found = model.compare_many([from_root(served.root, task, *item) for item in items])
    for judgement, (given, swapped) in zip(found, wanted, strict=True):
        assert judgement.texts == (given[0], swapped[0])
        answers = [vote.answer for vote in judgement.votes]
        assert answers == [given[1], swapped[1] and 3 - swapped[1]]


def from_root(root: Path, task: str, prompt: str, a: Any, b: Any, context: Any) -> tuple[Any, ...]:
    """An item of RewardModel: pictures of a comparison as paths of files, or as their bytes."""
    if TASKS[task].compares_media:
        a, b = ([root / path for path in as_tuple(one)] for one in (a, b))
    return prompt, a, b, [(root / path).read_bytes() for path in context]
