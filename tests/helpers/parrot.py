"""A tiny model that writes one of a few texts, by the prompt and by chance."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cot_reward.media.images import load_image

from helpers.models import save_untrained_base

_STEPS = 500


class Lesson(NamedTuple):
    """A prompt with placeholders, its images, and a text that may follow."""

    prompt: str
    images: Sequence[Path]
    text: str


def save_parrot(folder: Path, lessons: Sequence[Lesson]) -> Path:
    """Train the demo's untrained base on these lessons by heart, and save it (a minute)."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    save_untrained_base(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(folder)
    # The prompt is the same of several lessons: together they are a batch.
    batches: dict[str, list[Lesson]] = {}
    for lesson in lessons:
        batches.setdefault(lesson.prompt, []).append(lesson)
    inputs = [_batch(processor, group) for group in batches.values()]
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=_STEPS)
    choice = random.Random(0)
    model.train()
    for _ in range(_STEPS):
        loss = model(**choice.choice(inputs)).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval().save_pretrained(folder)
    return folder


def _batch(processor: Any, lessons: Sequence[Lesson]) -> dict[str, Any]:
    texts, images = [], []
    for lesson in lessons:
        parts: list[dict[str, str]] = []
        for number, text in enumerate(lesson.prompt.split("<image>")):
            if number:
                parts.append({"type": "image"})
            if text:
                parts.append({"type": "text", "text": text})
        asked = [{"role": "user", "content": parts}]
        start = processor.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        texts.append((start, start + lesson.text + "<|im_end|>\n"))
        images.append([load_image(path).convert("RGB") for path in lesson.images])
    whole = processor(images=images, text=[text for _, text in texts], padding=True,
                      padding_side="right", return_tensors="pt")  # fmt: skip
    labels = whole["input_ids"].clone()
    labels[whole["attention_mask"] == 0] = -100
    for row, (start, _) in enumerate(texts):
        prompt = processor(images=images[row], text=[start], return_tensors="pt")["input_ids"]
        labels[row, : prompt.shape[1]] = -100
    return {**whole, "labels": labels}
