"""DPO steps of ours next to stock TRL's, in turns: same data, model, loss and precision.

    .envs/main/bin/python tests/bench/dpo.py [--rounds 3] [--steps 8] [--threads N]
        [--prompts 256 1032 2048 4096 8192] [--family qwen3_vl] [--masked] [--quick]
    .envs/main/bin/python tests/bench/dpo.py --groups 4 --prompts 1032

A Qwen2.5-VL with random weights and a small vocabulary, full fine-tuning in fp32 on the CPU with a
frozen vision tower, one pair a step: two images, P tokens of prompt, 260 and 230 of completions.
"stock" is trl.DPOTrainer with its own collator and an `images` column, "cached" is ours, "live" is
ours with `--reference_cache false`, and "masked" (with --masked) ours with one whole 4-D mask in
place of attention in two parts. With --groups N a step is the N pairs of one chosen and N rejected
texts: "stock" and "cached" take them one after the other, and "grouped" as one row. Each run is a
process of its own that calls trainer.train(), and the variants of a setting take turns. Prints
Markdown:

- s/step: the median over a run's steps, data loading included, first ones dropped; then the
  median over the rounds.
- peak memory: the highest RSS of training less the RSS when the trainer stood.
- loss off by: the largest difference of a step's loss from stock's, absolute and relative.

Exits with 1 when a loss is more than 1e-3 (relative) from stock's.
"""

import argparse
import ctypes
import gc
import itertools
import json
import math
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

REPO = Path(__file__).parents[2]
sys.path.insert(0, str(REPO / "scripts"))

WARM_UP_STEPS = 2
EPOCHS = 3  # of a whole run
MAX_RELATIVE_DIFFERENCE = 1e-3
COMPLETION = "<think>\nThe images{}.\n</think>\n<answer>Image {} is better</answer>"
TRAINING: dict[str, Any] = {"use_cpu": True, "bf16": False, "seed": 0, "learning_rate": 1e-5}
TRAINING |= {"per_device_train_batch_size": 1, "dataloader_num_workers": 0, "logging_steps": 1}
TRAINING |= {"report_to": "none", "save_strategy": "no", "disable_tqdm": True}
# Sizes of the model, rows, tokens of the completions, and the P that everything is measured on.
FULL = {"hidden": 256, "mlp": 768, "layers": 8}, 12, (260, 230), 1032
FULL[0].update(vision_hidden=128, vision_mlp=256, vision_layers=4)
QUICK = {"hidden": 64, "mlp": 128, "layers": 2, "vision_hidden": 32}, 4, (60, 50), 160

# --- inputs ---------------------------------------------------------------------------------------


def prepare(folder: Path, sizes: Any, prompts: list[int], family: str, rejected: int) -> str:
    """Write `folder`/base, and P.jsonl with its pictures for every P; describes the model.

    Every chosen text is in `rejected` rows, next to each other.
    """
    import torch
    from cot_reward.demo import tiny_qwen
    from cot_reward.demo.settings import ModelSizes
    from cot_reward.dpo.collator import SharedPrefixCollator

    model_sizes, count, completions, _ = sizes
    torch.manual_seed(0)
    sizes_of_model = ModelSizes(vocab=1000, heads=4, kv_heads=2, **model_sizes)
    template = "Judge. Text Caption: [{caption}]"
    tokenizer = tiny_qwen.build_tokenizer(template, sizes_of_model.vocab, family)
    processor = tiny_qwen.build_processor(tokenizer, family)
    model = tiny_qwen.build_model(tokenizer, sizes_of_model, family)
    model.save_pretrained(folder / "base")
    processor.save_pretrained(folder / "base")
    # Of one token each, so that texts can be filled up to a number of tokens.
    tokens = [token for token in sorted(tokenizer.get_vocab()) if token.startswith("Ġ")]
    words = [" " + token[1:] for token in tokens if token[1:].isascii() and token[1:].isalpha()]
    collator = SharedPrefixCollator(processor, image_folder=folder)
    for prompt in prompts:
        rows = []
        for number in range(count):
            wanted = [prompt, *completions]
            row = make_row(folder, f"{prompt}_{number}", wanted, words, collator, family)
            before, after = COMPLETION.format("|", 2).split("|")
            texts = row["rejected"].removeprefix(before).removesuffix(after).split()
            for turn in range(rejected):
                # The same words in another order: as many tokens.
                turned = "".join(f" {word}" for word in texts[turn:] + texts[:turn])
                rows.append(row | {"rejected": COMPLETION.format(turned, 2)})
        (folder / f"{prompt}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return f"{parameters / 1e6:.2f} M parameters, vocabulary {len(tokenizer)}"


def make_row(
    folder: Path, name: str, wanted: list[int], words: list[str], collator: Any, family: str
) -> dict[str, Any]:
    """A DPO row of exactly `wanted` tokens: prompt with images, chosen, rejected."""
    from cot_reward.demo.tiny_qwen import FAMILIES
    from cot_reward.dpo.groups import make_rows
    from cot_reward.dpo.pairs import conversational, digests_of, group_labels

    rng = random.Random(name)
    images = [f"{name}_0.png", f"{name}_1.jpg"]
    # 330 tokens of 28 x 28 pixels, or 250 of 32 x 32, are below the bound of 262,144 pixels.
    pixels = FAMILIES[family].token_pixels
    budget = min(258_720 // pixels**2, wanted[0] // 3)
    for image in images:
        wide = rng.randint(int(0.8 * budget**0.5), int(1.3 * budget**0.5))
        size = [side * pixels for side in (wide, budget // wide)]
        picture(rng.randrange(2**32), *size).save(folder / image)

    def made(counts: list[int]) -> tuple[dict[str, Any], list[int]]:
        texts = ["".join(rng.choices(words, k=count)) for count in counts]
        row = {
            "problem": "<image><image>Judge the images." + texts[0],
            "chosen": COMPLETION.format(texts[1], 1),
            "rejected": COMPLETION.format(texts[2], 2),
            "images": images,
        }
        pair = conversational(row) | group_labels(row) | digests_of(row, [name])
        batch = collator(make_rows([pair | {"comparison": name, "task": ""}]))
        lengths = batch["completion_mask"].sum(dim=1).tolist()
        return row, [batch["prompt_ids"].shape[1] + 1, *lengths]

    missing = [goal - have for goal, have in zip(wanted, made([0, 0, 0])[1], strict=True)]
    if min(missing) < 1:
        sys.exit(f"two images, the frame of the texts and a word need more than {wanted} tokens")
    row, counted = made(missing)
    assert counted == wanted, (counted, wanted)
    return row


def picture(seed: int, width: int, height: int) -> Any:
    """Noise over gradients, photo-like."""
    import numpy
    from PIL import Image

    generator = numpy.random.default_rng(seed)
    y, x = numpy.mgrid[0:height, 0:width] / max(width, height)
    a, b = generator.uniform(0, 120, (2, 3))
    pixels = x[..., None] * a + y[..., None] * b + generator.normal(20, 12, (height, width, 1))
    return Image.fromarray(pixels.clip(0, 255).astype("uint8"))


def full_mask(of_responses: Any, layout: Any) -> Any:
    """What every token of a row sees, (pairs, 1, length, length): the plain way of sharing."""
    import torch

    rest = of_responses(layout)
    pairs, prompt = layout.prompt_mask.shape
    first = torch.ones(prompt, rest.shape[-1]).tril().bool()
    return torch.cat((first.expand(pairs, 1, -1, -1), rest), dim=2)


# --- one run, in a process of its own -------------------------------------------------------------


def memory(field: str) -> float:
    """VmRSS or VmHWM (the highest) of this process in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field + ":"))


def stock(base: str, rows: Path, settings: dict[str, Any]) -> Any:
    from cot_reward.dpo.pairs import conversational
    from datasets import Dataset, Image, Sequence
    from transformers import AutoProcessor
    from trl import DPOConfig, DPOTrainer

    ready = [conversational(json.loads(line)) for line in rows.read_text().splitlines()]
    for row in ready:
        row["images"] = [str(rows.parent / image) for image in row.pop("image_paths")]
    trainer = DPOTrainer(
        model=base,
        args=DPOConfig(max_length=None, **settings),
        train_dataset=Dataset.from_list(ready).cast_column("images", Sequence(Image())),
        processing_class=AutoProcessor.from_pretrained(base),
    )
    # The tower and the projector, as ours does.
    trainer.model.model.visual.requires_grad_(False)
    return trainer


def ours(base: str, rows: Path, settings: dict[str, Any], cache: str | None, groups: bool) -> Any:
    from cot_reward.dpo import build, trl_settings
    from cot_reward.dpo.pairs import load_pairs

    flags: dict[str, Any] = {
        "model_name_or_path": base,
        "data_path": rows,
        "image_folder": rows.parent,
        "shared_prefix": True,
        "reference_cache": cache is not None,
    }
    flags |= settings | ({"reference_cache_dir": cache} if cache else {})
    parsed = trl_settings.parse([f"--{name}={value}" for name, value in flags.items()])
    pairs = load_pairs(str(rows), str(rows.parent))
    return build.build_trainer(*parsed, pairs.dataset(groups=groups))


def work(job: dict[str, Any]) -> dict[str, Any]:
    """Build a trainer and, unless the cache alone is to be filled, train."""
    import transformers
    from cot_reward.dpo import trainer
    from cot_reward.dpo.families.layout import Layout

    if job["variant"] == "masked":
        stock_mask = Layout.response_mask
        Layout.response_mask = lambda layout: full_mask(stock_mask, layout)
    base, rows = f"{job['folder']}/base", Path(job["folder"], f"{job['prompt']}.jsonl")
    settings = TRAINING | {
        "gradient_checkpointing": job["checkpointing"],
        "output_dir": f"{job['folder']}/out",
        "max_steps": job["steps"] or -1,
        "num_train_epochs": EPOCHS,
    }
    if job["rejected"] > 1:
        settings["train_sampling_strategy"] = "sequential"
        if job["variant"] != "grouped":
            settings["gradient_accumulation_steps"] = job["rejected"]
    spent, ends = 0.0, []
    computed = trainer.PairTrainer.compute_reference_logps

    def timed(*arguments: Any) -> Any:
        nonlocal spent
        spent -= time.perf_counter()
        result = computed(*arguments)
        spent += time.perf_counter()
        return result

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, *arguments: Any, **named: Any) -> None:
            ends.append(time.perf_counter())

    trainer.PairTrainer.compute_reference_logps = timed  # type: ignore
    started = time.perf_counter()
    if job["variant"] == "stock":
        trainer = stock(base, rows, settings)
    else:
        cache = None if job["variant"] == "live" else job["cache"]
        trainer = ours(base, rows, settings, cache, job["variant"] == "grouped")
        # Steps are timed with a full cache, whole runs have to fill it.
        assert bool(spent) is (cache is not None and not job["steps"]), spent
    result = {"built": time.perf_counter() - started, "filling": spent / len(trainer.train_dataset)}
    if job["fill_only"]:
        return result
    trainer.add_callback(Clock())
    gc.collect()
    # Freed memory that is still held would be used by training and not be seen.
    ctypes.CDLL(None).malloc_trim(0)
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    trainer.train()
    steps = [after - at for at, after in itertools.pairwise(ends)][WARM_UP_STEPS - 1 :]
    trained = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    assert {str(parameter.dtype) for parameter in trained} == {"torch.float32"}
    return result | {
        "whole": time.perf_counter() - started,
        "step": statistics.median(steps),
        "peak": memory("VmHWM") - before,
        "trained": sum(parameter.numel() for parameter in trained),
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
    }


def call(threads: int, **job: Any) -> dict[str, Any]:
    """The result of `work`, from a fresh process."""
    job = {"checkpointing": False, "steps": None, "fill_only": False} | job
    quiet = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TQDM_DISABLE": "1"}
    quiet |= {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive"}
    command = [sys.executable, __file__, "--job", json.dumps(job, default=str)]
    done = subprocess.run(command, env=os.environ | quiet, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{job}\n{done.stderr[-5000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    rounded = {name: round(value, 3) for name, value in result.items() if name != "losses"}
    what = [job[name] for name in ("prompt", "checkpointing", "variant")]
    print(time.strftime("%H:%M:%S"), *what, rounded, file=sys.stderr, flush=True)
    return result


# --- the tables -----------------------------------------------------------------------------------


def spread(values: list[float], digits: int = 2) -> str:
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


class Turns:
    """Runs of stock and ours in turns, and metrics of ours next to stock's of the same round."""

    def __init__(self, variants: list[str], rounds: int, cache: Path, **job: Any) -> None:
        self._seen: dict[str, list[dict[str, Any]]] = {variant: [] for variant in variants}
        for number in range(rounds):
            for variant in variants:
                # A whole run has to fill a cache of its own.
                kept = cache if job.get("steps") else cache / str(number)
                self._seen[variant].append(call(variant=variant, cache=kept, **job))

    def metrics(self, variant: str, name: str) -> list[float]:
        return [run[name] for run in self._seen[variant]]

    def ratios(self, over: str, under: str, name: str) -> list[float]:
        return [a[name] / b[name] for a, b in zip(self._seen[over], self._seen[under], strict=True)]

    def off(self, variant: str) -> tuple[float, float]:
        """The largest difference of a step's loss from stock's, absolute and relative."""
        pairs: list[tuple[float, float]] = []
        for own, theirs in zip(self._seen[variant], self._seen["stock"], strict=True):
            assert own["trained"] == theirs["trained"], (own["trained"], theirs["trained"])
            pairs += zip(own["losses"], theirs["losses"], strict=True)
        assert all(map(math.isfinite, itertools.chain(*pairs)))
        return max(abs(a - b) for a, b in pairs), max(abs(a - b) / abs(b) for a, b in pairs)


def measure(options: argparse.Namespace, sizes: Any, folder: Path) -> float:
    """Print the tables; returns the largest relative difference of a loss."""
    _, count, completions, main = sizes
    model = prepare(folder, sizes, options.prompts, options.family, options.groups)
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "trl", "transformers"))
    print(
        f"{date.today()}; {os.cpu_count()} CPUs, {options.threads} threads, load "
        f"{os.getloadavg()[0]:.1f} at the start; Python {platform.python_version()}, {versions}.\n"
        f"Random {options.family} of {model}, fp32; {count} rows of two images, P prompt tokens, "
        f"{completions} of completions; {options.steps} timed steps of {options.groups} pair(s) "
        f"after {WARM_UP_STEPS}; medians of {options.rounds} rounds (least to most), ratios within "
        "a round.\n\n"
        "| P | checkpointing | variant | s/step | x stock's speed | peak MiB | of stock's "
        "| loss off by | relative | filling s/row |\n|" + "---|" * 10,
        flush=True,
    )
    common: dict[str, Any] = {"threads": options.threads, "folder": folder}
    common["rejected"] = options.groups
    worst, found = 0.0, {}
    settings = [(prompt, False) for prompt in options.prompts]
    for prompt, checkpointing in settings + [(main, True)] * (main in options.prompts):
        job = common | {"prompt": prompt, "checkpointing": checkpointing}
        cache = folder / f"cache_{prompt}_{checkpointing}"
        filled = call(variant="cached", cache=cache, fill_only=True, **job)["filling"]
        variants = ["stock", "cached", *["live"] * (prompt == main and options.groups == 1)]
        variants += ["masked"] * options.masked + ["grouped"] * (options.groups > 1)
        turns = Turns(variants, options.rounds, cache, steps=WARM_UP_STEPS + options.steps, **job)
        for variant in variants:
            speeds = turns.ratios("stock", variant, "step")
            shares = turns.ratios(variant, "stock", "peak")
            absolute, relative = turns.off(variant)
            print(
                f"| {prompt} | {'on' if checkpointing else 'off'} | {variant} "
                f"| {spread(turns.metrics(variant, 'step'), 3)} | {spread(speeds)} "
                f"| {statistics.median(turns.metrics(variant, 'peak')):.0f} | {spread(shares)} "
                f"| {absolute:.1e} | {relative:.1e} "
                f"| {f'{filled:.3f}' if variant == 'cached' else ''} |",
                flush=True,
            )
            worst = max(worst, relative)
            if prompt == main:
                found[variant, checkpointing] = statistics.median(speeds), statistics.median(shares)
    if main not in options.prompts or options.groups > 1:
        return worst

    turns = Turns(["stock", "cached"], options.rounds, folder / "whole", prompt=main, **common)
    speeds = turns.ratios("stock", "cached", "whole")
    absolute, relative = turns.off("cached")
    own, theirs = (spread(turns.metrics(variant, "whole"), 1) for variant in ("cached", "stock"))
    print(
        f"\nA whole run at P = {main} ({EPOCHS} epochs, from reading the rows to the end of "
        f"training, ours with filling the cache): stock {theirs} s, ours {own} s, "
        f"{spread(speeds)} x; filling {spread(turns.metrics('cached', 'filling'), 3)} s/row; "
        f"losses off by {absolute:.1e}, relative {relative:.1e}.\n\n"
        f"| aim at P = {main} | wanted | seen | reached |\n|" + "---|" * 4
    )
    for what, wanted, value in (
        ("cached: x stock's speed", 2.2, found["cached", False][0]),
        ("cached, checkpointing: x stock's speed", 2.0, found["cached", True][0]),
        ("live: x stock's speed", 1.6, found["live", False][0]),
        ("live, checkpointing: x stock's speed", 1.6, found["live", True][0]),
        ("cached: memory of stock's", 0.65, found["cached", False][1]),
        ("cached, checkpointing: memory of stock's", 0.65, found["cached", True][1]),
        ("whole run: x stock's speed", 1.9, statistics.median(speeds)),
    ):
        less = "memory" in what
        reached = "yes" if (value <= wanted if less else value >= wanted) else "NO"
        print(f"| {what} | {'<=' if less else '>='} {wanted} | {value:.2f} | {reached} |")
    return max(worst, relative)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--steps", type=int, help="timed ones of a run")
    parser.add_argument("--prompts", type=int, nargs="+", help="numbers of prompt tokens")
    parser.add_argument("--family", default="qwen2_5_vl", help="qwen2_5_vl, qwen3_vl or qwen3_5")
    parser.add_argument("--groups", type=int, default=1, help="rejected texts of a chosen one")
    parser.add_argument("--masked", action="store_true", help="a variant more")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--quick", action="store_true", help="tiny: to see that this file works")
    parser.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        print("\n" + json.dumps(work(options.job)))
        return
    options.rounds = options.rounds or (1 if options.quick else 3)
    options.steps = options.steps or (2 if options.quick else 8)
    if not options.prompts:
        options.prompts = [128, 160] if options.quick else [256, 1032, 2048, 4096, 8192]
    with tempfile.TemporaryDirectory() as folder:
        off = measure(options, QUICK if options.quick else FULL, Path(folder))
    if not off <= MAX_RELATIVE_DIFFERENCE:
        sys.exit(
            f"\nNOT EQUAL: losses are up to {off:.1e} (relative) from stock TRL's; no figure above "
            "means anything before that is explained."
        )


if __name__ == "__main__":
    main()
