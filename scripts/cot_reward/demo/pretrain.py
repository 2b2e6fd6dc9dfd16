"""Trains the demo's base model on the lessons: minutes on two CPUs in place of pre-training."""

import math
import multiprocessing
import os
import random
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed
from torch.nn import functional
from tqdm import tqdm
from transformers import AttentionInterface

from cot_reward import store
from cot_reward.demo import world
from cot_reward.demo.lessons import (
    Lesson,
    check_prompt,
    picture_lesson,
    points_lesson,
    random_thing,
    sum_lesson,
)
from cot_reward.demo.settings import BaseSettings, WorldSettings
from cot_reward.demo.tiny_qwen import FAMILIES, build_model, build_processor, build_tokenizer
from cot_reward.provenance import versions

SUM_INTERVAL_STEPS = 3  # every so many steps, a step of sums
WARMUP_RAMP_STEPS = 30  # of the learning rate, from 0 to its peak
BASE_RAMP_STEPS = 50
WARMUP_STOP_ACCURACY = 0.995  # of the learned tokens
RECENT_STEPS = 20  # steps of the means that are shown, and that can end a training
# Standard deviations of the pixel noise at which perception is measured.
NOISE_LEVELS = (10.0, 50.0, 100.0)
PERCEPTION_PICTURES = 500
PERCEPTION_SUMS = 200
PERCEPTION_BATCH = 100
# Tokens of `world.observations` for one picture: the words, and the two digits of the points.
WORD_PLACES = (7, 22)
POINTS_PLACES = ((9, 10), (24, 25))
# transformers passes all pictures in one call only to implementations with "flash" in their name.
VISION_ATTENTION = "flash_equal_lengths"


class Encoder:
    """Turns lessons into batches, in the token layout of the chat template."""

    def __init__(self, processor: Any, family: str = "qwen2_5_vl") -> None:
        self.images = processor.image_processor
        self.tokenizer = processor.tokenizer
        self.pad = self.tokenizer.convert_tokens_to_ids("<|endoftext|>")
        self.image = self.tokenizer.convert_tokens_to_ids("<|image_pad|>")
        pads = "<|image_pad|>" * FAMILIES[family].image_tokens
        self._block = f"<|vision_start|>{pads}<|vision_end|>"
        chat = [{"role": "user", "content": "<text>"}]
        self._chat = self.tokenizer.apply_chat_template(
            chat, tokenize=False, add_generation_prompt=True
        )
        self._cache: dict[str, list[int]] = {}

    def ids(self, text: str) -> list[int]:
        """Token ids; cached, since the demo has few different texts."""
        if text not in self._cache:
            self._cache[text] = self.tokenizer(text)["input_ids"]
        return self._cache[text]

    def prompt(self, text: str) -> str:
        """The text of a chat with one user turn; `<image>` becomes its image tokens."""
        return self._chat.replace("<text>", text.replace("<image>", self._block))

    def batch(self, lessons: Sequence[Lesson]) -> dict[str, torch.Tensor]:
        """Inputs and labels, right-padded, (lessons, longest); the label of a prompt is -100."""
        pairs = [
            (self.ids(self.prompt(lesson.prompt)), self.ids(lesson.target + "<|im_end|>"))
            for lesson in lessons
        ]
        length = max(len(prompt) + len(target) for prompt, target in pairs)
        ids = torch.full((len(lessons), length), self.pad)
        labels = torch.full((len(lessons), length), -100)
        mask = torch.zeros((len(lessons), length), dtype=torch.long)
        for i, (prompt, target) in enumerate(pairs):
            end = len(prompt) + len(target)
            ids[i, :end] = torch.tensor(prompt + target)
            labels[i, len(prompt) : end] = torch.tensor(target)
            mask[i, :end] = 1
        batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        if images := [image for lesson in lessons for image in lesson.images]:
            batch |= dict(self.images(images, return_tensors="pt"))
            batch["mm_token_type_ids"] = (ids == self.image).int()
        return batch


def _attention_over_equal_pictures(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    cu_seq_lens_q: torch.Tensor,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Vision attention over pictures of one size, in one call.

    `query`, `key` and `value` are (1, heads, patches of all pictures, head width). Without this
    function transformers calls SDPA once per picture and layer, which takes a third of a step here.
    """
    pictures = len(cu_seq_lens_q) - 1
    q, k, v = (
        part.unflatten(2, (pictures, -1)).squeeze(0).transpose(0, 1) for part in (query, key, value)
    )
    out = functional.scaled_dot_product_attention(q, k, v, scale=scaling)
    return out.transpose(1, 2).flatten(0, 1).unsqueeze(0), None


AttentionInterface.register(VISION_ATTENTION, _attention_over_equal_pictures)


def _forward(model: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of the learned tokens, (tokens, vocabulary), and the tokens themselves, (tokens,)."""
    labels = batch["labels"][:, 1:]
    learned = labels != -100
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    hidden = model.model(**inputs, use_cache=False).last_hidden_state[:, :-1]
    return model.lm_head(hidden[learned]), labels[learned]


class Team:
    """The processes that train one model, each on its share of every batch with one thread.

    Two processes use two cores better than two threads do: at this size threads wait for each other
    at every small operation, and much longer when another program wants a core.
    """

    def __init__(self, rank: int, size: int, rendezvous: Path) -> None:
        self.rank, self.size = rank, size
        if size > 1:
            distributed.init_process_group(
                "gloo", init_method=rendezvous.resolve().as_uri(), rank=rank, world_size=size
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
    """Its gradient; zeros when the step did not use it (the vision tower in a step of texts)."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


def _train(
    model: Any,
    team: Team,
    batch_of: Callable[[int], dict[str, torch.Tensor]],
    steps: int,
    learning_rate: Callable[[int], float],
    name: str,
    stop_accuracy: float = math.inf,
) -> tuple[int, float]:
    """AdamW over `batch_of(step)`; returns the steps done and the mean loss of the recent steps.

    The training ends early when the mean token accuracy of the recent steps is `stop_accuracy`.
    """
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.98), weight_decay=0.01)
    losses: list[float] = []
    accuracies: list[float] = []
    model.train()
    with tqdm(total=steps, desc=name, unit="step", disable=team.rank > 0) as bar:
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step)
            logits, labels = _forward(model, batch_of(step))
            loss = functional.cross_entropy(logits, labels)
            loss.backward()
            accuracy = (logits.argmax(-1) == labels).float().mean()
            # One message for all gradients and both metrics.
            gradients = [_gradient(parameter) for parameter in parameters]
            metrics = torch.stack([loss.detach(), accuracy])
            averaged = team.average(torch.cat([part.flatten() for part in [*gradients, metrics]]))
            pieces = averaged[:-2].split([gradient.numel() for gradient in gradients])
            for gradient, piece in zip(gradients, pieces, strict=True):
                gradient.copy_(piece.view_as(gradient))
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(averaged[-2].item())
            accuracies.append(averaged[-1].item())
            recent_loss = float(np.mean(losses[-RECENT_STEPS:]))
            recent_accuracy = float(np.mean(accuracies[-RECENT_STEPS:]))
            bar.set_postfix(loss=f"{recent_loss:.3f}", token_accuracy=f"{recent_accuracy:.3f}")
            bar.update()
            if len(losses) >= RECENT_STEPS and recent_accuracy >= stop_accuracy:
                break
    return len(losses), float(np.mean(losses[-RECENT_STEPS:])) if losses else math.nan


def _points_batch(encoder: Encoder, rng: random.Random, size: int) -> dict[str, torch.Tensor]:
    """Points lessons whose only learned tokens are the two digits before each "/"."""
    batch = encoder.batch([points_lesson(rng) for _ in range(size)])
    labels = batch["labels"]
    slash = functional.pad(labels == encoder.ids("/")[0], (0, 2))
    batch["labels"] = labels.masked_fill(~(slash[:, 1:-1] | slash[:, 2:]), -100)
    return batch


@torch.no_grad()
def perception(
    model: Any,
    encoder: Encoder,
    seed: int,
    noise: float,
    number: int,
) -> dict[str, float]:
    """Shares of right shades, sizes and their points on `number` new pictures, and of right sums.

    Right means that the most likely token at each place of the true text is the true one; a sum
    is right together with the image that has more.
    """
    model.eval()
    rng = random.Random(f"{seed}/perception")
    right: dict[str, list[bool]] = defaultdict(list)
    for start in range(0, number, PERCEPTION_BATCH):
        checks = []
        for _ in range(min(PERCEPTION_BATCH, number - start)):
            wanted, thing = random_thing(rng), random_thing(rng)
            image = world.draw(thing, rng, noise)
            target = world.observations(wanted, (thing,))
            checks.append(Lesson("<image>" + check_prompt("image", wanted), target, (image,)))
        logits, labels = _forward(model, encoder.batch(checks))
        hits = (logits.argmax(-1) == labels).reshape(len(checks), -1)
        for name, word, digits in zip(world.DIMENSIONS, WORD_PLACES, POINTS_PLACES, strict=True):
            right[name.lower()] += hits[:, word].tolist()
            right[f"{name.lower()}_points"] += hits[:, digits].all(1).tolist()
    sums = [sum_lesson(rng) for _ in range(PERCEPTION_SUMS)]
    logits, labels = _forward(model, encoder.batch(sums))
    lengths = [len(encoder.ids(lesson.target + "<|im_end|>")) for lesson in sums]
    # The digits alone: which word stands before the image with more cannot be known.
    digits = torch.tensor([encoder.ids(digit)[0] for digit in "0123456789"])
    hits = (logits.argmax(-1) == labels) | ~torch.isin(labels, digits)
    right["sums"] = [bool(of_text.all()) for of_text in hits.split(lengths)]
    return {name: round(float(np.mean(hits)), 4) for name, hits in right.items()}


def _train_base(
    world_settings: WorldSettings, settings: BaseSettings, rank: int, rendezvous: Path
) -> tuple[Any, Any, dict[str, Any]]:
    """The work of one process; returns the model, the same in each, its processor and metrics."""
    torch.set_num_threads(1)
    torch.manual_seed(world_settings.seed)
    team = Team(rank, settings.processes, rendezvous)
    family = settings.family
    tokenizer = build_tokenizer(world_settings.read_template(), settings.vocab, family)
    processor = build_processor(tokenizer, family)
    encoder = Encoder(processor, family)
    model = build_model(tokenizer, settings, family)
    model.model.visual.config._attn_implementation = VISION_ATTENTION
    size = settings.batch // team.size

    def warmup_batch(step: int) -> dict[str, torch.Tensor]:
        rng = random.Random(f"{world_settings.seed}/warmup/{step}/{rank}")
        return _points_batch(encoder, rng, size)

    def base_batch(step: int) -> dict[str, torch.Tensor]:
        rng = random.Random(f"{world_settings.seed}/base/{step}/{rank}")
        # Sums have steps of their own: they are longer, and would pad the lessons beside them.
        if step % SUM_INTERVAL_STEPS == SUM_INTERVAL_STEPS - 1:
            return encoder.batch([sum_lesson(rng) for _ in range(size)])
        return encoder.batch([picture_lesson(rng, settings.base_noise) for _ in range(size)])

    def warmup_rate(step: int) -> float:
        return settings.warmup_lr * min(1, (step + 1) / WARMUP_RAMP_STEPS)

    def cosine_rate(step: int) -> float:
        wave = 0.5 * (1 + math.cos(math.pi * step / settings.base_steps))
        return settings.lr * min(1, (step + 1) / BASE_RAMP_STEPS) * wave

    try:
        warmup_steps, warmup_loss = _train(
            model, team, warmup_batch, settings.warmup_steps, warmup_rate, "warm-up",
            WARMUP_STOP_ACCURACY,
        )  # fmt: skip
        _, loss = _train(model, team, base_batch, settings.base_steps, cosine_rate, "base")
    finally:
        team.close()
    metrics = {"warmup_steps": warmup_steps, "warmup_loss": warmup_loss, "loss": loss}
    return model, processor, metrics


def write_base(
    world_settings: WorldSettings, settings: BaseSettings, command: list[str]
) -> dict[str, Any]:
    """Train the base, save it in `settings.model_out`, and return its summary, written last.

    A folder whose summary has the same settings is left as it is.
    """
    started = time.monotonic()
    out = settings.model_out
    signature = settings.signature(world_settings)
    if summary := world.read_summary(out, signature):
        print(f"{out}: already made with these settings")
        return summary
    out.mkdir(parents=True, exist_ok=True)
    (out / "summary.json").unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        rendezvous = Path(folder) / "rendezvous"
        workers = [
            multiprocessing.get_context("spawn").Process(
                target=_train_base, args=(world_settings, settings, rank, rendezvous), daemon=True
            )
            for rank in range(1, settings.processes)
        ]
        for worker in workers:
            worker.start()
        model, processor, metrics = _train_base(world_settings, settings, 0, rendezvous)
        for worker in workers:
            worker.join()
    encoder = Encoder(processor)
    perceived = {}
    for noise in NOISE_LEVELS:
        shares = perception(model, encoder, world_settings.seed, noise, PERCEPTION_PICTURES)
        perceived[f"noise_{noise:g}"] = shares
        print(f"on fresh pictures, noise {noise:g}: {shares}")
    model.save_pretrained(out)
    processor.save_pretrained(out)
    summary = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "vocabulary": len(processor.tokenizer),
        **metrics,
        "perception": perceived,
        "settings": signature,
        "command": command,
        "versions": versions("torch", "transformers", "tokenizers"),
        "cpus": os.cpu_count(),
        "seconds": round(time.monotonic() - started, 1),
    }
    store.write_json(out / "summary.json", summary)
    return summary
