"""The demo's base model: a tiny Qwen2.5-VL, its tokenizer and processor, and what stands in for
pre-training.

A model must see before it can judge. The base learns to name what pictures show and to check each
attribute against a caption, and to add up points; it never sees a chain of thought of the task.
"""

import json
import math
import multiprocessing
import os
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import distributed
from torch.nn import functional
from tqdm import tqdm
from transformers import (
    AddedToken,
    AttentionInterface,
    GenerationConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from cot_reward import demo_world as world
from cot_reward import store
from cot_reward.provenance import versions
from cot_reward.tasks import prompts
from cot_reward.tasks.generation import CAPTION_MARKER

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
# Qwen2's own split. AutoTokenizer rebuilds a Qwen2 tokenizer with it whatever the saved file says,
# so a vocabulary trained on another split would get other ids after loading than in training.
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SYSTEM = "You are a helpful assistant."
# Renders as LLaMA-Factory's template qwen2_vl does, which training uses.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\n" + SYSTEM + "<|im_end|>\n"
    "{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' or 'image' in part or 'image_url' in part %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' or 'video' in part %}"
    "<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in part %}{{ part['text'] }}"
    "{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PATCH, MERGE = 14, 2
IMAGE_TOKENS = (world.SIDE // (PATCH * MERGE)) ** 2
SUM_EVERY = 6  # steps
NOISES = (10.0, 50.0, 100.0)  # sd of pixel noise at which perception is measured
MODEL_SETTINGS = (
    "seed",
    "base_noise",
    "warmup_steps",
    "warmup_lr",
    "base_steps",
    "lr",
    "batch",
    "processes",
    "hidden",
    "mlp",
    "layers",
    "heads",
    "kv_heads",
    "vision_hidden",
    "vision_mlp",
    "vision_layers",
    "vision_heads",
    "vocab",
)


@dataclass(frozen=True)
class Row:
    """One text with `<image>` marks, the answer to learn, and what its pictures show."""

    prompt: str
    target: str
    images: tuple[Image.Image, ...]


def build_tokenizer(template: str, vocab: int) -> Qwen2Tokenizer:
    """A byte-level BPE of at most `vocab` tokens, trained on the demo's texts, as Qwen2's own."""
    rng = random.Random(0)
    texts = [f"system\n{SYSTEM}", "user\n", "assistant\n"] * 200
    for scene in world.scenes("cold_start", world.Settings(cold_start=400)):
        texts.append(prompts.fill(template, {"caption": scene.caption}))
        texts.append(world.teacher_cot(scene))
        for row in (pretraining_row(rng, noise=0.0), sum_row(rng)):
            texts += [row.prompt.replace("<image>", ""), row.target]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    learned = json.loads(bpe.to_str())["model"]
    merges: Any = [tuple(merge) for merge in learned["merges"]]
    tokenizer = Qwen2Tokenizer(
        vocab=learned["vocab"],
        merges=merges,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=32768,
    )
    tokenizer.add_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def build_processor(tokenizer: Qwen2Tokenizer) -> Qwen2_5_VLProcessor:
    """Qwen2-VL's processor. The demo's pictures pass it at their own size, SIDE x SIDE.

    The bounds are wide, so that the one pixel bound of the project (media.bound, as
    LLaMA-Factory's) decides, and nothing here resizes once more.
    """
    bounds = {"shortest_edge": (PATCH * MERGE) ** 2, "longest_edge": 28 * 28 * 1280}
    shape: dict[str, Any] = {"patch_size": PATCH, "merge_size": MERGE, "temporal_patch_size": 2}
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=dict(bounds), **shape),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size=dict(bounds), **shape),
        chat_template=CHAT_TEMPLATE,
    )


def build_model(
    tokenizer: Qwen2Tokenizer, settings: world.Settings
) -> Qwen2_5_VLForConditionalGeneration:
    """A Qwen2.5-VL of the settings' sizes with random weights, float32."""
    ids: dict[str, Any] = {
        token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS
    }
    half = settings.hidden // settings.heads // 2
    # Time, height and width share the rotary frequencies 1 : 1.5 : 1.5, as in the released models.
    time_part = half // 4
    height_part = (half - time_part) // 2
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": settings.hidden,
            "intermediate_size": settings.mlp,
            "num_hidden_layers": settings.layers,
            "num_attention_heads": settings.heads,
            "num_key_value_heads": settings.kv_heads,
            "max_position_embeddings": 32768,
            "max_window_layers": settings.layers,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1_000_000.0,
                "mrope_section": [time_part, height_part, half - time_part - height_part],
            },
            "tie_word_embeddings": True,
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
            # With the usual 0.02 a model this narrow starts too flat to learn in 600 steps.
            "initializer_range": 0.05,
        },
        vision_config={
            "depth": settings.vision_layers,
            "hidden_size": settings.vision_hidden,
            "intermediate_size": settings.vision_mlp,
            "num_heads": settings.vision_heads,
            "out_hidden_size": settings.hidden,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
            "window_size": 112,
            "fullatt_block_indexes": [settings.vision_layers - 1],
            "initializer_range": 0.05,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        bos_token_id=ids["<|endoftext|>"],
        eos_token_id=[ids["<|im_end|>"], ids["<|endoftext|>"]],
        pad_token_id=ids["<|endoftext|>"],
    )
    return model


def pretraining_row(rng: random.Random, noise: float) -> Row:
    """A caption or an attribute check over one or two fresh pictures."""
    number = 2 if rng.random() < 0.7 else 1
    noun = "images" if number == 2 else "image"
    wanted = world.any_thing(rng)
    things = tuple(_shown(wanted, rng) for _ in range(number))
    images = tuple(world.draw(thing, rng, noise) for thing in things)
    if rng.random() < 0.3:
        target = " ".join(
            f"Image {i} shows {colour} {shape}."
            for i, (colour, shape) in enumerate(things, start=1)
        )
        return Row("<image>" * number + f"Describe the {noun}.", target, images)
    return Row(
        "<image>" * number + _check(noun, wanted), world.observations(wanted, things), images
    )


def sum_row(rng: random.Random) -> Row:
    """Points to copy and add up, without pictures."""
    digits = sorted(point for scale in world.POINTS.values() for point in scale)
    first, second = (
        (rng.choice(digits), rng.choice(digits)),
        (rng.choice(digits), rng.choice(digits)),
    )
    prompt = f"Add up.\n{world.score_lines(first, second)}"
    return Row(prompt, world.total_lines(first, second), ())


def _check(noun: str, wanted: world.Thing) -> str:
    return f"Check the {noun}. {CAPTION_MARKER} [{world.caption(wanted)}]"


def _shown(wanted: world.Thing, rng: random.Random) -> world.Thing:
    """What a picture for this caption shows: the wanted thing in a third of cases."""
    if rng.random() < 1 / 3:
        return wanted
    return world.near_miss(wanted, rng.choice(("colour", "shape", "shape", "both")), rng)


class Encoder:
    """Turns rows into batches, in the token layout of the chat template."""

    def __init__(self, processor: Qwen2_5_VLProcessor) -> None:
        self.images = processor.image_processor
        self.tokenizer = processor.tokenizer
        self.pad = self.tokenizer.convert_tokens_to_ids("<|endoftext|>")
        self.image = self.tokenizer.convert_tokens_to_ids("<|image_pad|>")
        self._cache: dict[str, list[int]] = {}

    def ids(self, text: str) -> list[int]:
        """Token ids; remembered, since the demo has few texts."""
        if text not in self._cache:
            self._cache[text] = self.tokenizer(text)["input_ids"]
        return self._cache[text]

    def prompt(self, text: str) -> str:
        """The chat of one user turn with its `<image>` marks expanded."""
        block = "<|vision_start|>" + "<|image_pad|>" * IMAGE_TOKENS + "<|vision_end|>"
        return (
            f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n"
            f"{text.replace('<image>', block)}<|im_end|>\n<|im_start|>assistant\n"
        )

    def batch(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        """Inputs and labels, right-padded, (rows, longest); -100 where nothing is learned."""
        pairs = [
            (self.ids(self.prompt(row.prompt)), self.ids(row.target + "<|im_end|>")) for row in rows
        ]
        length = max(len(prompt) + len(target) for prompt, target in pairs)
        ids = torch.full((len(rows), length), self.pad)
        labels = torch.full((len(rows), length), -100)
        mask = torch.zeros((len(rows), length), dtype=torch.long)
        for i, (prompt, target) in enumerate(pairs):
            end = len(prompt) + len(target)
            ids[i, :end] = torch.tensor(prompt + target)
            labels[i, len(prompt) : end] = torch.tensor(target)
            mask[i, :end] = 1
        batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        if images := [image for row in rows for image in row.images]:
            batch |= dict(self.images(images, return_tensors="pt"))
            batch["mm_token_type_ids"] = (ids == self.image).int()
        return batch


def _equal_lengths(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    cu_seq_lens_q: torch.Tensor,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Vision attention over pictures of one size, in one call: (1, heads, all patches, head width).

    Without it transformers calls SDPA once per picture and layer, which is a third of a step here.
    """
    pictures = len(cu_seq_lens_q) - 1
    q, k, v = (
        part.unflatten(2, (pictures, -1)).squeeze(0).transpose(0, 1) for part in (query, key, value)
    )
    out = functional.scaled_dot_product_attention(q, k, v, scale=scaling)
    return out.transpose(1, 2).flatten(0, 1).unsqueeze(0), None


# transformers hands all pictures at once only to implementations with "flash" in their name.
AttentionInterface.register("flash_equal_lengths", _equal_lengths)


def _forward(
    model: Qwen2_5_VLForConditionalGeneration, batch: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (learned tokens, vocabulary) at the positions that predict them, and the tokens."""
    labels = batch["labels"][:, 1:]
    learned = labels != -100
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    hidden = model.model(**inputs, use_cache=False).last_hidden_state[:, :-1]
    return model.lm_head(hidden[learned]), labels[learned]


class Team:
    """Equal processes that train one model, each on its share of every batch, one thread each.

    Two processes use two cores better than two threads do: at this size a thread team waits at
    every small operation, and badly when something else wants a core.
    """

    def __init__(self, rank: int, size: int, meeting: Path) -> None:
        self.rank, self.size = rank, size
        if size > 1:
            distributed.init_process_group(
                "gloo", init_method=meeting.resolve().as_uri(), rank=rank, world_size=size
            )

    def average(self, values: torch.Tensor) -> torch.Tensor:
        """The mean over the processes, in place."""
        if self.size > 1:
            distributed.all_reduce(values)
            values /= self.size
        return values

    def close(self) -> None:
        if self.size > 1:
            distributed.destroy_process_group()


def _gradient(parameter: torch.nn.Parameter) -> torch.Tensor:
    """Zeros for what a step did not touch (the vision tower, in a step of texts)."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


def _train(
    model: Qwen2_5_VLForConditionalGeneration,
    team: Team,
    make: Callable[[int], dict[str, torch.Tensor]],
    steps: int,
    rate: Callable[[int], float],
    name: str,
    enough: float = 2.0,
) -> tuple[int, float]:
    """AdamW over `make(step)`; returns the steps done and the mean loss of the last 20.

    It ends early when the mean token accuracy of the last 20 steps reaches `enough`.
    """
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.98), weight_decay=0.01)
    losses: list[float] = []
    accuracies: list[float] = []
    model.train()
    with tqdm(total=steps, desc=name, unit="step", disable=team.rank > 0) as bar:
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = rate(step)
            logits, labels = _forward(model, make(step))
            loss = functional.cross_entropy(logits, labels)
            loss.backward()
            accuracy = (logits.argmax(-1) == labels).float().mean()
            # One message: all gradients, and the two numbers that are watched.
            gradients = [_gradient(parameter) for parameter in parameters]
            watched = torch.stack([loss.detach(), accuracy])
            shared = team.average(torch.cat([part.flatten() for part in [*gradients, watched]]))
            pieces = shared[:-2].split([gradient.numel() for gradient in gradients])
            for gradient, piece in zip(gradients, pieces, strict=True):
                gradient.copy_(piece.view_as(gradient))
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(shared[-2].item())
            accuracies.append(shared[-1].item())
            recent = float(np.mean(losses[-20:])), float(np.mean(accuracies[-20:]))
            bar.set_postfix(loss=f"{recent[0]:.3f}", token_accuracy=f"{recent[1]:.3f}")
            bar.update()
            if len(losses) >= 20 and recent[1] >= enough:
                break
    return len(losses), float(np.mean(losses[-20:])) if losses else math.nan


def _verdict_batch(encoder: Encoder, rng: random.Random, size: int) -> dict[str, torch.Tensor]:
    """Checks without pictures; only the verdicts are learned, since nothing shows the rest."""
    rows = []
    yes_no = {encoder.ids(" yes")[0], encoder.ids(" no")[0]}
    for _ in range(size):
        wanted = world.any_thing(rng)
        things = (_shown(wanted, rng), _shown(wanted, rng))
        rows.append(Row(_check("images", wanted), world.observations(wanted, things), ()))
    batch = encoder.batch(rows)
    verdicts = torch.isin(batch["labels"], torch.tensor(sorted(yes_no)))
    batch["labels"] = batch["labels"].masked_fill(~verdicts, -100)
    return batch


@torch.no_grad()
def perception(
    model: Qwen2_5_VLForConditionalGeneration, encoder: Encoder, seed: int, noise: float, rows: int
) -> dict[str, float]:
    """Shares of attributes named right and verdicts right on fresh pictures, and of right sums.

    Read off the most likely token at each place of the true answer.
    """
    model.eval()
    rng = random.Random(f"{seed}/perception")
    right: dict[str, list[float]] = {
        name: [] for name in ("colour", "colour_verdict", "shape", "shape_verdict")
    }
    for start in range(0, rows, 100):
        checks = []
        for _ in range(min(100, rows - start)):
            wanted = world.any_thing(rng)
            thing = _shown(wanted, rng)
            image = world.draw(thing, rng, noise)
            target = world.observations(wanted, (thing,))
            checks.append(Row("<image>" + _check("image", wanted), target, (image,)))
        logits, labels = _forward(model, encoder.batch(checks))
        hits = (logits.argmax(-1) == labels).float().reshape(len(checks), -1)
        # "Image", " ", "1", " shows", then colour, verdict, shape, verdict.
        for place, name in enumerate(right, start=4):
            right[name] += hits[:, place].tolist()
    sums = [sum_row(rng) for _ in range(200)]
    logits, labels = _forward(model, encoder.batch(sums))
    ends = [len(encoder.ids(row.target + "<|im_end|>")) for row in sums]
    right["sums"] = [float(hits.all()) for hits in (logits.argmax(-1) == labels).split(ends)]
    return {name: round(float(np.mean(hits)), 4) for name, hits in right.items()}


def _pretrain(
    settings: world.Settings, rank: int, meeting: Path
) -> tuple[Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor, dict[str, Any]]:
    """One process's part of the training: the same model in each, and its figures."""
    torch.set_num_threads(1)
    torch.manual_seed(settings.seed)
    team = Team(rank, settings.processes, meeting)
    processor = build_processor(build_tokenizer(settings.read_template(), settings.vocab))
    encoder = Encoder(processor)
    model = build_model(processor.tokenizer, settings)
    model.model.visual.config._attn_implementation = "flash_equal_lengths"
    share = settings.batch // team.size

    def texts(step: int) -> dict[str, torch.Tensor]:
        return _verdict_batch(
            encoder, random.Random(f"{settings.seed}/warmup/{step}/{rank}"), share
        )

    def checks(step: int) -> dict[str, torch.Tensor]:
        rng = random.Random(f"{settings.seed}/base/{step}/{rank}")
        # Sums come in steps of their own: as longer rows among the others they would only pad.
        if step % SUM_EVERY == SUM_EVERY - 1:
            return encoder.batch([sum_row(rng) for _ in range(share)])
        return encoder.batch([pretraining_row(rng, settings.base_noise) for _ in range(share)])

    def warm(step: int) -> float:
        return settings.warmup_lr * min(1, (step + 1) / 30)

    def cosine(step: int) -> float:
        wave = 0.5 * (1 + math.cos(math.pi * step / settings.base_steps))
        return settings.lr * min(1, (step + 1) / 50) * wave

    try:
        warmup_steps, warmup_loss = _train(
            model, team, texts, settings.warmup_steps, warm, "warm-up", enough=0.995
        )
        _, loss = _train(model, team, checks, settings.base_steps, cosine, "base")
    finally:
        team.close()
    figures = {"warmup_steps": warmup_steps, "warmup_loss": warmup_loss, "loss": loss}
    return model, processor, figures


def write_base(settings: world.Settings, command: list[str]) -> dict[str, Any]:
    """Train the base, save it below `settings.model_out`, and return its summary, written last.

    A folder that already has these settings' summary is left as it is.
    """
    started = time.monotonic()
    out = settings.model_out
    signature = settings.signature(MODEL_SETTINGS)
    if done := world.read_summary(out, signature):
        print(f"{out}: already made with these settings")
        return done
    out.mkdir(parents=True, exist_ok=True)
    (out / "summary.json").unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        meeting = Path(folder) / "meeting"
        others = [
            multiprocessing.get_context("spawn").Process(
                target=_pretrain, args=(settings, rank, meeting), daemon=True
            )
            for rank in range(1, settings.processes)
        ]
        for other in others:
            other.start()
        model, processor, figures = _pretrain(settings, 0, meeting)
        for other in others:
            other.join()
    encoder = Encoder(processor)
    seen = {}
    for noise in NOISES:
        seen[f"noise_{noise:g}"] = perception(model, encoder, settings.seed, noise, rows=500)
        print(f"on fresh pictures, noise {noise:g}: {seen[f'noise_{noise:g}']}")
    model.save_pretrained(out)
    processor.save_pretrained(out)
    summary = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "vocabulary": len(processor.tokenizer),
        **figures,
        "perception": seen,
        "settings": signature,
        "command": command,
        "versions": versions("torch", "transformers", "tokenizers"),
        "cpus": os.cpu_count(),
        "seconds": round(time.monotonic() - started, 1),
    }
    store.write_json(out / "summary.json", summary)
    return summary
