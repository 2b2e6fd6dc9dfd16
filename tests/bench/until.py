"""Tokens for each DPO pair: `--until right,wrong` beside fixed sampling, in a simulated world.

    .envs/main/bin/python tests/bench/until.py [--comparisons 1000] [--alpha 0.5] [--beta 0.5]
        [--samples 4 8 16] [--first 1 2 4] [--seed 0]

There is no model. A server draws for each comparison how often "the model" is right about it, from
Beta(alpha, beta), the same for both orders; each text is then right by chance. Of all texts so many
are ties (`--ties`) or have no answer (`--unparsed`), which no pair can use. A text has some 300
tokens (words here), each of which takes a millisecond; the server writes 64 texts at a time, so
that it makes 64,000 tokens/s at most, if it always has enough to do. Client and merger are the
real ones, and an adaptive run must find a pair in the same orders as the fixed run with the same
maximum.
"""

import argparse
import asyncio
import contextlib
import io
import json
import random
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
sys.path.insert(0, str(Path(__file__).parents[1]))

from cot_reward import settings
from cot_reward.inference.run import infer
from cot_reward.inference.settings import InferenceSettings
from cot_reward.pairing.run import merge
from cot_reward.pairing.settings import MergeSettings
from helpers.rows import raw_row, read_lines
from helpers.texts import cot
from PIL import Image

MEAN_WORDS, SD_WORDS, PROMPT_TOKENS = 300, 60, 1200
SECONDS_PER_TOKEN, SLOTS, CONCURRENCY = 0.001, 64, 128
VOCABULARY = [f"w{number}" for number in range(400)]


# --- the simulated model --------------------------------------------------------------------------


def text_of(caption: str, seed: int, right: int, world: argparse.Namespace) -> str:
    """The text with this seed about a comparison of which `right` is the right answer."""
    rng = random.Random(f"{world.seed}/{caption}")
    rate = rng.betavariate(world.alpha, world.beta)
    words = rng.choices(VOCABULARY, k=80)
    rng = random.Random(seed)
    answer = right if rng.random() < rate else 3 - right
    kind = rng.random()
    count = max(20, round(rng.gauss(MEAN_WORDS, SD_WORDS)))
    remark = " ".join(rng.choices(words, k=count)) + " "
    better, worse = (rng.randint(5, 9),), (rng.randint(1, 4),)
    if kind < world.ties:
        worse = better
    text = cot(*((better, worse) if answer == 1 else (worse, better)), answer, remark=remark)
    return text.replace("<answer>", "") if kind > 1 - world.unparsed else text


def serve(world: argparse.Namespace) -> None:
    from aiohttp import web

    slots = asyncio.Semaphore(SLOTS)

    async def write(tokens: int) -> None:
        async with slots:
            await asyncio.sleep(SECONDS_PER_TOKEN * tokens)

    async def models(request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "simulated"}]})

    async def chat(request: web.Request) -> web.Response:
        body = await request.json()
        parts = body["messages"][0]["content"]
        shown = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
        caption = parts[-1]["text"].rpartition("[")[2].rstrip("]")
        right = 1 if shown and shown[0].endswith("better.png") else 2
        texts = [text_of(caption, body["seed"] + n, right, world) for n in range(body["n"])]
        tokens = [len(text.split()) for text in texts]
        await asyncio.gather(*map(write, tokens))
        choices = [
            {"index": n, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
            for n, text in enumerate(texts)
        ]
        usage = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": sum(tokens)}
        return web.json_response({"model": "simulated", "choices": choices, "usage": usage})

    async def main() -> None:
        app = web.Application(client_max_size=2**24)
        app.add_routes([web.get("/v1/models", models), web.post("/v1/chat/completions", chat)])
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        print(runner.addresses[0][1], flush=True)
        await asyncio.Event().wait()

    asyncio.run(main())


@contextlib.contextmanager
def simulated_model() -> Iterator[str]:
    """The address of the server, which runs in a process of its own."""
    command = [sys.executable, __file__, *sys.argv[1:], "--serve"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
    finally:
        process.kill()
        process.wait()


# --- the measurement ------------------------------------------------------------------------------


def sample(folder: Path, url: str, name: str, *flags: object) -> dict[str, Any]:
    """The summary of a run of the client, in `folder/name`."""
    argv = [
        "--data", folder / "data.json", "--media-root", folder / "media", "--out", folder / name,
        "--base-url", url, "--media", "file", "--concurrency", CONCURRENCY, "--min-parsed", 0,
        *flags,
    ]  # fmt: skip
    told = io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
        code = infer(settings.parse(InferenceSettings, "", argv=list(map(str, argv))), "none")
    if code:
        sys.exit(told.getvalue())
    summary: dict[str, Any] = json.loads((folder / name / "summary.json").read_text())
    return summary


def pairs(folder: Path, name: str, count: int) -> int:
    """How many pairs the merger makes, at most `count` of a comparison."""
    argv = [
        "--correct", folder / name / "correct.jsonl",
        "--incorrect", folder / name / "incorrect.jsonl",
        "--media-root", folder / "media", "--out", folder / "pairs",
        "--rejected-coherence", "coherent", "no_totals", "--pairs-per-comparison", count,
    ]  # fmt: skip
    told = io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
        merge(settings.parse(MergeSettings, "", argv=list(map(str, argv))))
    return int(json.loads((folder / "pairs/summary.json").read_text())["pairs"])


def orders_with_pair(folder: Path, name: str) -> set[tuple[str, str]]:
    sides: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    for side in ("correct", "incorrect"):
        for row in read_lines(folder / name / f"{side}.jsonl"):
            if row["coherence"] in ("coherent", "no_totals"):
                sides[row["id"], row["order"]].add(side)
    return {place for place, found in sides.items() if len(found) == 2}


def line(folder: Path, url: str, samples: int, first: int | None) -> tuple[str, set[Any]]:
    """A line of the table, and the orders in which a pair was found. `first` None: fixed."""
    name = f"out{samples}-{first or 'fixed'}"
    flags = ["--until", "right,wrong", "--first", first] if first else []
    summary = sample(folder, url, name, "--num-samples", samples, *flags)
    tokens, found = summary["completion_tokens"], summary["usable_pairs"]
    one, six = pairs(folder, name, 1), pairs(folder, name, 6)
    requests = round(summary["prompt_tokens"] / PROMPT_TOKENS)
    cells = (
        samples, f"until, first {first}" if first else "fixed", f"{summary['account']['judged']:,}",
        f"{requests:,}", f"{tokens / 1e6:.2f} M", f"{found['orders']['count']:,}",
        f"{found['completion_tokens_per_pair']:,.0f}", f"{one:,}", f"{tokens / one:,.0f}",
        f"{six:,}", f"{tokens / six:,.0f}", f"{summary['completion_tokens_per_second']:,.0f}",
    )  # fmt: skip
    return "| " + " | ".join(map(str, cells)) + " |", orders_with_pair(folder, name)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--comparisons", type=int, default=1000)
    parser.add_argument("--alpha", type=float, default=0.5)
    parser.add_argument("--beta", type=float, default=0.5)
    parser.add_argument("--ties", type=float, default=0.1)
    parser.add_argument("--unparsed", type=float, default=0.03)
    parser.add_argument("--samples", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--first", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options)
        return
    print(
        "| at most | sampling | texts | requests | tokens | orders with a pair | tokens for each "
        "| pairs (1 a comparison) | tokens for each | pairs (6) | tokens for each | tokens/s |\n"
        + "|---" * 12 + "|"
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as name, simulated_model() as url:
        folder = Path(name)
        for number, file in enumerate(("better.png", "worse.png")):
            (folder / "media").mkdir(exist_ok=True)
            Image.new("RGB", (56, 56), (90 * number, 90, 90)).save(folder / "media" / file)
        rows = [
            raw_row(f"caption {number}", ["better.png", "worse.png"], label=1)
            for number in range(options.comparisons)
        ]
        (folder / "data.json").write_text(json.dumps(rows))
        for samples in options.samples:
            fixed, wanted = line(folder, url, samples, None)
            print(fixed, flush=True)
            for first in options.first:
                if first < samples:
                    adaptive, found = line(folder, url, samples, first)
                    print(adaptive, flush=True)
                    if found != wanted:
                        sys.exit("a pair is found in other orders than by fixed sampling")


if __name__ == "__main__":
    main()
