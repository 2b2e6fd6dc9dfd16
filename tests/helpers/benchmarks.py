"""Answers of made-up models, and small files of benchmarks in their own columns."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from cot_reward.evaluation.answers import Answers
from cot_reward.evaluation.items import Item
from pyarrow import parquet

from helpers.pictures import picture
from helpers.rows import write_rows
from helpers.videos import video


def answers_of(
    picks: Any,
    better: Sequence[int] | None = None,
    groups: Sequence[str] = ("a",),
    clusters: Sequence[str] | None = None,
    model: str = "model",
) -> Answers:
    """Answers to items whose better candidate is 1 (or `better`).

    `picks` is (items, orders, samples). The groups come in turns. In the second order candidate 2
    is shown first.
    """
    array = np.array(picks, dtype=np.int8)
    items = [
        Item(f"item {n}", f"key {n}", groups[n % len(groups)],
             clusters[n] if clusters else f"cluster {n}", better[n] if better else 1, 1)
        for n in range(len(array))
    ]  # fmt: skip
    shown = array.copy()
    shown[:, 1:] = np.where(array[:, 1:] > 0, 3 - array[:, 1:], array[:, 1:])
    return Answers(
        model, items, array, array > 0, np.full(array.shape, 10, np.int32), np.maximum(shown, 0),
        np.full(array.shape, np.nan, np.float32),
    )  # fmt: skip


def random_answers(
    seed: int, items: int = 40, samples: int = 3, model: str = "model", skill: float = 0.7,
    groups: Sequence[str] = ("a", "b", "c"), ties: bool = False,
) -> Answers:  # fmt: skip
    """Answers that are right with a chance of `skill`, and in one of ten cases none."""
    choice = np.random.default_rng(seed)
    truth = np.random.default_rng(99).integers(0 if ties else 1, 3, items)
    shape = (items, 2, samples)
    is_right = choice.random(shape) < skill
    picks = np.where(is_right, truth[:, None, None], 3 - truth[:, None, None])
    picks = np.where(truth[:, None, None] == 0, choice.integers(1, 3, shape), picks)
    picks = np.where(choice.random(shape) < 0.1, 0, picks)
    return answers_of(picks, truth.tolist(), groups, model=model)


def struct(path: Path) -> dict[str, Any]:
    """An image as `datasets` writes it into Parquet."""
    return {"bytes": path.read_bytes(), "path": path.name}


def benchmark_files(root: Path) -> dict[str, Path]:
    """Name of a benchmark -> a file of it with a few rows, beside the media in `root`."""
    root.mkdir(parents=True, exist_ok=True)
    for number in range(6):
        picture(root / f"{number}.png", (40 * number, 90, 9))
        video(root / f"{number}.mp4", [40 * number] * 9)
    images = [struct(root / f"{number}.png") for number in range(6)]
    ids = ("RLAIF-V-1", "RLHF-V-2", "hallucination_pair-3", "mathverse_4", "mmmu_5", "wildvision-6")
    tables: dict[str, list[dict[str, Any]]] = {
        "vl-rewardbench": [
            {"id": name, "query": f"What is in {n}?", "response": [f"a cat {n}", f"a dog {n}"],
             "image": images[n], "human_ranking": [n % 2, 1 - n % 2], "models": ["x", "y"],
             "judge": ["j"], "rationale": [""], "query_source": "q", "ground_truth": ""}
            for n, name in enumerate(ids)
        ],
        "genai-bench-image": [
            {"left_model": "x", "left_image": images[n], "right_model": "y", "prompt": f"cat {n}",
             "right_image": images[n + 1], "vote_type": vote, "vote_date": "d"}
            for n, vote in enumerate(("leftvote", "rightvote", "tievote", "bothbad_vote"))
        ],
        "genai-bench-video": [
            {"left_model": "x", "left_video": f"https://a.b/c/{n}.mp4?x=1", "right_model": "y",
             "right_video": f"https://a.b/c/{n + 1}.mp4", "prompt": f"cat {n}", "vote_type": vote}
            for n, vote in enumerate(("leftvote", "rightvote", "tievote"))
        ],
        "genai-bench-edit": [
            {"source_prompt": "a cat", "target_prompt": "a dog", "instruct_prompt": f"turn it {n}",
             "source_image": images[5], "left_output_image": images[n],
             "right_output_image": images[n + 1], "vote_type": vote}
            for n, vote in enumerate(("leftvote", "rightvote", "bothbad_vote"))
        ],
        "mj-bench": [
            {"caption": f"cat {n}", "image0": images[n], "image1": images[n + 1], "label": n % 2,
             "info": f"kind {n % 2}"}
            for n in range(4)
        ],
    }  # fmt: skip
    files = {}
    for name, rows in tables.items():
        files[name] = root / f"{name}.parquet"
        parquet.write_table(pa.Table.from_pylist(rows), files[name])
    files["videogen-rewardbench"] = root / "videogen.csv"
    lines = ["path_A,path_B,prompt,VQ,MQ,TA,Overall"]
    lines += [
        f'./{n}.mp4,./{n + 1}.mp4,"a cat, {n}",A,B,same,{overall}'
        for n, overall in enumerate(("A", "B", "same"))
    ]
    files["videogen-rewardbench"].write_text("\n".join(lines) + "\n")
    files["multimodal-rewardbench"] = write_rows(root / "all_data.json", [
        {"ID": name, "Text": f"What is in {n}?", "Image": f"{n}.png", "Output1": f"a cat {n}",
         "Output2": f"a dog {n}", "Better": f"Output{1 + n % 2}", "Category": category}
        for n, (name, category) in enumerate((
            ("PAIRS-1", "safety"), ("hateful-2", "safety"), ("MathVista-3", "reasoning"),
            ("EMMA-4", "reasoning"), ("vqa-5", "vqa"),
        ))
    ])  # fmt: skip
    for name, sources, file in (("mmrb2-image", 0, "t2i.json"), ("mmrb2-edit", 1, "edit.json")):
        pairs = [
            {"pair_id": f"p{n}", "prompt_source": f"source {n % 2}", "chosen": "AB"[n % 2],
             "prompt_content": [["text", f"cat {n}"]] + [["image", "5.png"]] * shown,
             "response_a": {"model": "x", "response_content": [["image", f"{n}.png"]]},
             "response_b": {"model": "y", "response_content": [["image", f"{n + 1}.png"]]}}
            for n, shown in enumerate((sources, sources, sources, sources + 1))
        ]  # fmt: skip
        files[name] = root / file
        write_rows(files[name], {"pairs": pairs})  # type: ignore[arg-type]
    return files
