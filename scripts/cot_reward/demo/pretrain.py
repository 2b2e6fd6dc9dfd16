"""The base's training on the lessons, which stands in for pre-training; minutes on two CPUs."""

import math
import multiprocessing
import os
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed
from torch.nn import functional
from tqdm import tqdm
from transformers import (
    AttentionInterface,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
)

from cot_reward import store
from cot_reward.demo import world
from cot_reward.demo.lessons import (
    Row,
    check_prompt,
    pretraining_row,
    shown_thing,
    sum_row,
    verdict_row,
)
from cot_reward.demo.settings import BaseSettings, WorldSettings
from cot_reward.demo.tiny_qwen import (
    IMAGE_TOKENS,
    SYSTEM,
    build_model,
    build_processor,
    build_tokenizer,
)
from cot_reward.provenance import versions

SUM_EVERY = 6  # steps
NOISES = (10.0, 50.0, 100.0)  # sd of pixel noise at which perception is measured


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
    """Rows of which only the verdicts are learned."""
    yes_no = {encoder.ids(" yes")[0], encoder.ids(" no")[0]}
    batch = encoder.batch([verdict_row(rng) for _ in range(size)])
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
            thing = shown_thing(wanted, rng)
            image = world.draw(thing, rng, noise)
            target = world.observations(wanted, (thing,))
            checks.append(Row("<image>" + check_prompt("image", wanted), target, (image,)))
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
    of_world: WorldSettings, settings: BaseSettings, rank: int, meeting: Path
) -> tuple[Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor, dict[str, Any]]:
    """One process's part of the training: the same model in each, and its figures."""
    torch.set_num_threads(1)
    torch.manual_seed(of_world.seed)
    team = Team(rank, settings.processes, meeting)
    processor = build_processor(build_tokenizer(of_world.read_template(), settings.vocab))
    encoder = Encoder(processor)
    model = build_model(processor.tokenizer, settings)
    model.model.visual.config._attn_implementation = "flash_equal_lengths"
    share = settings.batch // team.size

    def texts(step: int) -> dict[str, torch.Tensor]:
        return _verdict_batch(
            encoder, random.Random(f"{of_world.seed}/warmup/{step}/{rank}"), share
        )

    def checks(step: int) -> dict[str, torch.Tensor]:
        rng = random.Random(f"{of_world.seed}/base/{step}/{rank}")
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


def write_base(
    of_world: WorldSettings, settings: BaseSettings, command: list[str]
) -> dict[str, Any]:
    """Train the base, save it below `settings.model_out`, and return its summary, written last.

    A folder that already has these settings' summary is left as it is.
    """
    started = time.monotonic()
    out = settings.model_out
    signature = settings.signature(of_world)
    if done := world.read_summary(out, signature):
        print(f"{out}: already made with these settings")
        return done
    out.mkdir(parents=True, exist_ok=True)
    (out / "summary.json").unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        meeting = Path(folder) / "meeting"
        others = [
            multiprocessing.get_context("spawn").Process(
                target=_pretrain, args=(of_world, settings, rank, meeting), daemon=True
            )
            for rank in range(1, settings.processes)
        ]
        for other in others:
            other.start()
        model, processor, figures = _pretrain(of_world, settings, 0, meeting)
        for other in others:
            other.join()
    encoder = Encoder(processor)
    seen = {}
    for noise in NOISES:
        seen[f"noise_{noise:g}"] = perception(model, encoder, of_world.seed, noise, rows=500)
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
