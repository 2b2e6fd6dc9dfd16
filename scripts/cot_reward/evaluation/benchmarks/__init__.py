"""Benchmarks of pairs: a file each, with what an item is and the benchmark's own score."""

from cot_reward.evaluation.benchmarks.form import Benchmark
from cot_reward.evaluation.benchmarks.genai_bench import GENAI_BENCH
from cot_reward.evaluation.benchmarks.mj_bench import MJ_BENCH
from cot_reward.evaluation.benchmarks.mmrb2 import MMRB2
from cot_reward.evaluation.benchmarks.multimodal_rewardbench import MULTIMODAL_REWARDBENCH
from cot_reward.evaluation.benchmarks.videogen_rewardbench import VIDEOGEN_REWARDBENCH
from cot_reward.evaluation.benchmarks.vl_rewardbench import VL_REWARDBENCH

BENCHMARKS: dict[str, Benchmark] = {
    one.name: one
    for one in (
        VL_REWARDBENCH, *GENAI_BENCH, VIDEOGEN_REWARDBENCH, MULTIMODAL_REWARDBENCH, *MMRB2,
        MJ_BENCH,
    )
}  # fmt: skip
