"""MJ-Bench: two images of a caption in four perspectives (a split each)."""

from collections.abc import Mapping
from typing import Any

from cot_reward.evaluation.benchmarks.form import Benchmark, Found, meaning, medium_at, text_at


def find(row: Mapping[str, Any], number: int) -> Found:
    caption = text_at(row, "caption")
    return Found(
        str(number), str(row.get("info") or "all"),
        meaning(row, "label", {"0": 1, "1": 2}), caption,
        (medium_at(row, "image0"), medium_at(row, "image1")),
    )  # fmt: skip


MJ_BENCH = Benchmark(
    "mj-bench", "image_generation", "MJ-Bench/MJ-Bench",
    {"alignment": 0, "safety": 0, "quality": 0, "bias": 0}, find, None,
    "inference.py of github.com/MJ-Bench/MJ-Bench",
    files=("alignment*.parquet", "*.parquet", "*.json"),
    unseen="the rows themselves; label 0 is taken to prefer image0. The official score rates each "
    "image and calls differences up to a threshold ties, which answers to pairs do not give: there "
    "is the strict score alone. The perspective bias is no comparison of two images of a caption",
)  # fmt: skip
