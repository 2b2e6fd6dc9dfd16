"""What stage 3 writes is served as it is, and every stage shows a model the same tokens."""

import asyncio
import json
import os
import shutil
import subprocess
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
from cot_reward.client import wire
from cot_reward.client.server import Server
from cot_reward.dpo import run
from cot_reward.dpo.collator import PairCollator, SharedPrefixCollator
from cot_reward.dpo.pairs import load_pairs
from cot_reward.media.images import EXIF_ORIENTATION
from cot_reward.media.paths import ImageRoots
from cot_reward.media.sent import MediaReader, url_reader
from cot_reward.records import Comparison
from cot_reward.tasks import TASKS
from cot_reward.tasks.prompts import render, shown_media
from helpers.dpo import LLAMA_FACTORY, SFT_TEMPLATES, row, save_pictures, trainer_for, write
from helpers.environments import REPO
from helpers.models import save_untrained_base
from helpers.serving import RealServer, needs_vllm
from peft import PeftModel
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig

pytestmark = [pytest.mark.slow, needs_vllm]

# There vLLM computes in half precision.
ON_GPU = shutil.which("nvidia-smi") is not None
PIXELS = 6000  # 0.png, 1.png and clear.png lie below, 2.png, 3.png and turned.jpg above
CAPTION = "a red circle,\n\n  and “two” blue ones — 3/10 {caption}"
BETWEEN = "First:\n<image>\nthen  <image> .\nJudge. Text Caption: [{caption}]\n"


def comparisons() -> list[dict[str, Any]]:
    """DPO rows whose prompts are written as stage 2 writes them."""

    def pair(first: str, second: str, caption: str = CAPTION) -> Comparison:
        return Comparison("image_generation", caption, (first, second), 1)

    def asked(comparison: Comparison, order: Any = "given", template: str = "") -> dict[str, Any]:
        template = template or TASKS[comparison.task].template
        images = list(shown_media(comparison, order))
        return row(images, problem=render(comparison, order, template), task=comparison.task)

    two_texts = Comparison(
        "image_understanding", "What is it?", ("A circle.", "Red, I think"), 1, context=("2.png",)
    )
    return [
        asked(pair("0.png", "1.png")),
        asked(pair("0.png", "1.png"), "swapped"),
        asked(pair("2.png", "3.png")),
        asked(pair("3.png", "0.png"), template=BETWEEN),
        asked(pair("turned.jpg", "clear.png")),
        asked(pair("1.png", "2.png", " <b> | user ")),
        row(["2.png", "0.png"], problem=" \n<image> <image>  Which?  \n\n"),
        asked(two_texts),
    ]


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen3_vl"])
def made(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> SimpleNamespace:
    """One step with LoRA, by the functions that DPO_VL.py calls."""
    home, family = tmp_path_factory.mktemp("dpo"), request.param
    # Its heads are as wide as vLLM's CPU attention needs them.
    base = save_untrained_base(home / "base", family=family)
    out, folder = home / "out", home / "media"
    folder.mkdir()
    save_pictures(folder)
    # An orientation, and transparency, that readers disagree about.
    turned = Image.open(folder / "2.png").convert("RGB")
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    turned.save(folder / "turned.jpg", exif=exif)
    clear = Image.open(folder / "1.png").convert("RGB")
    clear.putalpha(60)
    clear.save(folder / "clear.png")

    rows = comparisons()
    pairs = write(home / "rows.jsonl", rows)
    flags = (
        f"--use_peft --merge_adapter --image_max_pixels {PIXELS} "
        # Large enough to see; the demo's first step is one of warm-up, at a rate of 0.
        "--learning_rate 0.02 --lr_scheduler_type constant --warmup_steps 0"
    )
    trainer, parsed = trainer_for(base, folder, pairs, out, *flags.split())
    run.train(trainer, *parsed)
    dataset = load_pairs(pairs, str(folder)).dataset()
    return SimpleNamespace(
        home=home, base=base, out=out, media=folder, rows=rows, examples=list(dataset),
        template=SFT_TEMPLATES[family],
    )  # fmt: skip


def load(model: Path) -> Any:
    return AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32).eval()


def batch_of(kind: type[PairCollator], made: SimpleNamespace) -> dict[str, Any]:
    processor = AutoProcessor.from_pretrained(made.base)
    return kind(processor, image_folder=made.media, image_max_pixels=PIXELS)(made.examples)


@torch.no_grad()
def logits_of(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    """Logits, 0 at the padding."""
    ours = ("completion_mask", "answer_mask", "images", "pairs")
    own = {name: value for name, value in batch.items() if name not in ours}
    return model(**own).logits * batch["attention_mask"][..., None]


def test_the_output_is_a_whole_model_that_computes_as_base_and_adapter_do(
    made: SimpleNamespace,
) -> None:
    out = made.out
    for name in (
        "model.safetensors",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "processor_config.json",
        "chat_template.jinja",
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
        "summary.json",
    ):
        assert (out / name).is_file(), name
    assert not list(out.glob("adapter_*"))
    assert not (out / "adapter/model.safetensors").exists()
    read = {path: AutoProcessor.from_pretrained(path) for path in (made.base, out)}
    assert read[out].chat_template == read[made.base].chat_template
    ends = [GenerationConfig.from_pretrained(path).eos_token_id for path in (made.base, out)]
    assert ends[0] == ends[1]

    base, merged = load(made.base), load(out)
    before, after = base.state_dict(), merged.state_dict()
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any("visual" in name for name in changed)
    assert any("language_model" in name for name in changed)
    batch = batch_of(PairCollator, made)
    plain = logits_of(base, batch)
    adapted = logits_of(PeftModel.from_pretrained(base, str(out / "adapter")).eval(), batch)
    assert (adapted - plain).abs().max() > 0.01
    torch.testing.assert_close(logits_of(merged, batch), adapted, atol=1e-4, rtol=0)


async def ask(
    url: str, made: SimpleNamespace, form: Literal["inline", "file"]
) -> list[dict[str, Any]]:
    """The server's answers to the client's requests about all rows."""
    answers = []
    with MediaReader(PIXELS, made.media / ".cache/media") as reader:
        read = url_reader(reader, ImageRoots(made.media, []), form)
        async with Server(url, "EMPTY") as server:
            sampling = wire.Sampling(await server.resolve_model(None), 0.0, 1.0, 1, 300, 300, 1)
            for asked in made.rows:
                content = wire.content(asked["problem"], map(read, asked["images"]))
                request = json.loads(wire.body(content, sampling, count=1, seed=0))
                request |= {"return_token_ids": True, "logprobs": True, "top_logprobs": 20}
                answers.append(await server.complete(json.dumps(request).encode(), 300))
    return answers


def llama_factory(made: SimpleNamespace) -> list[dict[str, Any]]:
    """Stage 1's token ids, labels and grids of the rows, those of the chosen first."""
    python = REPO / ".envs/sft/bin/python"
    subprocess.run(
        [python, "-c", LLAMA_FACTORY, made.base, made.media, made.home, str(PIXELS), made.template],
        check=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "passive"},
    )
    found: list[dict[str, Any]] = json.loads((made.home / "ids.json").read_text())
    return found


def test_the_served_model_sees_what_both_trainings_show_it(made: SimpleNamespace) -> None:
    """Prompt ids and image sizes of vLLM, SharedPrefixCollator and LLaMA-Factory are the same.

    Equal probabilities of the next token then tell that pixels, positions and weights are, too.
    """
    server = RealServer(made.out, made.media)
    server.start()
    try:
        answers = {form: asyncio.run(ask(server.url, made, form)) for form in ("inline", "file")}
    finally:
        server.stop()
    theirs = llama_factory(made)
    assert len(theirs) == 2 * len(made.rows)
    batch, stock = batch_of(SharedPrefixCollator, made), batch_of(PairCollator, made)
    logits = logits_of(load(made.out), stock)
    processor = AutoProcessor.from_pretrained(made.base)
    grids = iter(batch["image_grid_thw"].tolist())
    for number, asked in enumerate(made.rows):
        ours = batch["prompt_ids"][number][batch["prompt_mask"][number].bool()].tolist()
        ours.append(int(batch["input_ids"][number, 0]))
        grid = [next(grids) for _ in asked["images"]]
        their = theirs[number]
        answer = next(place for place, label in enumerate(their["labels"]) if label != -100)
        assert ours == their["input_ids"][:answer]
        assert grid == their["grid"]

        tokens = [time * height * width // 4 for time, height, width in grid]
        before_answer = int(stock["completion_mask"][number].argmax()) - 1
        expected = logits[number, before_answer].log_softmax(-1)
        for how, served in answers.items():
            ids = served[number]["prompt_token_ids"]
            assert ids == ours, (how, asked)
            marks = groupby(ids, processor.image_token_id.__eq__)
            assert [len(list(run)) for is_image, run in marks if is_image] == tokens
            (choice,) = served[number]["choices"]
            if not ON_GPU:
                (token,) = choice["logprobs"]["content"]
                said = [top["logprob"] for top in token["top_logprobs"]]
                found = torch.tensor(said), expected.topk(len(said)).values
                torch.testing.assert_close(*found, atol=5e-5, rtol=0)
    assert next(grids, None) is None
