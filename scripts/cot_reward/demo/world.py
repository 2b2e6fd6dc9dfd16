"""The demo's synthetic preference world: captions, pictures, comparisons, teacher CoTs.

A caption names a colour and a shape ("a red circle"); of two pictures one shows both, the other
misses the colour, the shape or both. Everything follows from the seed. There are only 18 captions,
so the pools share captions; no picture occurs twice.
"""

import json
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from cot_reward import store
from cot_reward.demo.settings import POOLS, WorldSettings
from cot_reward.provenance import versions
from cot_reward.records import conversation
from cot_reward.tasks import prompts
from cot_reward.tasks.generation import CAPTION_MARKER

COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 180, 60),
    "blue": (50, 80, 220),
    "yellow": (230, 210, 50),
    "purple": (150, 60, 180),
    "white": (240, 240, 240),
}
SHAPES = ("circle", "square", "triangle")
SIDE = 56  # pixels; 4 x 4 patches of 14, so 4 image tokens after merging
KINDS = ("colour", "shape", "both")
# Points of a right and of a wrong attribute. The four sums are all different, and none is a tie
# between a picture that fits and one that does not.
POINTS = {"colour": (9, 2), "shape": (8, 3)}

Thing = tuple[str, str]  # colour, shape


@dataclass(frozen=True)
class Scene:
    """A comparison before it is drawn: `things[i]` is shown in Image i + 1; `label` is 1 or 2."""

    name: str
    wanted: Thing
    things: tuple[Thing, Thing]
    label: int
    kind: str

    @property
    def caption(self) -> str:
        return caption(self.wanted)


def caption(thing: Thing) -> str:
    return f"a {thing[0]} {thing[1]}"


def any_thing(rng: random.Random) -> Thing:
    return rng.choice(list(COLOURS)), rng.choice(SHAPES)


def near_miss(wanted: Thing, kind: str, rng: random.Random) -> Thing:
    """A thing that misses the wanted colour, shape or both."""
    colour, shape = wanted
    if kind != "shape":
        colour = rng.choice([other for other in COLOURS if other != colour])
    if kind != "colour":
        shape = rng.choice([other for other in SHAPES if other != shape])
    return colour, shape


def contrast(wanted: Thing, kind: str, flawed: bool, rng: random.Random) -> tuple[Thing, Thing]:
    """A better and a worse thing that differ in how the kind's attributes fit the caption.

    Flawed: the better one misses an attribute too. Were one picture always perfect, the model would
    infer the second from the first instead of looking, and a misread first picture would lead it
    into texts that it has never seen.
    """
    if not flawed:
        return wanted, near_miss(wanted, kind, rng)
    if kind == "shape":
        return near_miss(wanted, "colour", rng), near_miss(wanted, "both", rng)
    # Of two pictures with one flaw each, the wrong shape costs less (POINTS).
    worse = near_miss(wanted, "both" if kind == "colour" else "colour", rng)
    return near_miss(wanted, "shape", rng), worse


def draw(thing: Thing, rng: random.Random, noise: float) -> Image.Image:
    """A SIDE x SIDE RGB picture: dark background, one filled shape of any size and place, noise."""
    background = tuple(rng.randint(0, 50) for _ in range(3))
    image = Image.new("RGB", (SIDE, SIDE), background)
    pen, fill = ImageDraw.Draw(image), COLOURS[thing[0]]
    r = rng.randint(11, 20)
    x, y = (rng.randint(r + 2, SIDE - 2 - r) for _ in range(2))
    if thing[1] == "circle":
        pen.ellipse([x - r, y - r, x + r, y + r], fill=fill)
    elif thing[1] == "square":
        pen.rectangle([x - r, y - r, x + r, y + r], fill=fill)
    else:
        pen.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], fill=fill)
    grain = np.random.default_rng(rng.getrandbits(64))
    pixels = np.asarray(image, dtype=np.float32)
    pixels = pixels + noise * grain.standard_normal(pixels.shape, dtype=np.float32)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def observation(wanted: Thing, shown: Thing) -> str:
    """What is seen, each attribute followed at once by its verdict: "red yes circle no".

    A tiny model sees well but compares badly when the verdict comes later: with this order the
    comparison is one token away from what it compares.
    """
    return " ".join(_checked(*pair) for pair in zip(shown, wanted, strict=True))


def _checked(seen: str, asked: str) -> str:
    """One attribute with its verdict: "circle no"."""
    return f"{seen} {'yes' if seen == asked else 'no'}"


def observations(wanted: Thing, things: tuple[Thing, ...]) -> str:
    """ "Image 1 shows red yes circle no. Image 2 shows ..." """
    return " ".join(
        f"Image {i} shows {observation(wanted, thing)}." for i, thing in enumerate(things, start=1)
    )


def points(wanted: Thing, shown: Thing) -> tuple[int, int]:
    """Scores of 10 for colour and shape."""
    colour, shape = (
        scale[seen != asked]
        for scale, seen, asked in zip(POINTS.values(), shown, wanted, strict=True)
    )
    return colour, shape


def teacher_cot(scene: Scene) -> str:
    """The right chain of thought: observations with their scores by dimension, totals, answer.

    A score stands right behind the observation that it is for. With the observations on a line of
    their own, texts whose scores left their observations passed the judge, and stages 2 and 3
    learned to guess scores.
    """
    wanted, (one, two) = scene.wanted, scene.things
    first, second = points(wanted, one), points(wanted, two)
    lines = [
        "<think>",
        *(
            f"{i + 1}. {dimension}: Image 1 {_checked(one[i], wanted[i])} ({first[i]}/10); "
            f"Image 2 {_checked(two[i], wanted[i])} ({second[i]}/10)"
            for i, dimension in enumerate(("Colour", "Shape"))
        ),
        "Total score:",
        total_lines(first, second),
        "</think>",
        f"<answer>Image {scene.label} is better</answer>",
    ]
    return "\n".join(lines)


def score_lines(first: tuple[int, int], second: tuple[int, int]) -> str:
    """A line for each dimension: "1. Colour: Image 1 (9/10); Image 2 (2/10)"."""
    return "\n".join(
        f"{i}. {dimension}: Image 1 ({one}/10); Image 2 ({two}/10)"
        for i, (dimension, one, two) in enumerate(
            zip(("Colour", "Shape"), first, second, strict=True), start=1
        )
    )


def total_lines(first: tuple[int, int], second: tuple[int, int]) -> str:
    """A line for each image: "Image 1: 9+3=12"."""
    return "\n".join(
        f"Image {i}: {scores[0]}+{scores[1]}={sum(scores)}"
        for i, scores in enumerate((first, second), start=1)
    )


def _quota(size: int, shares: tuple[float, ...]) -> list[int]:
    """`size` split by `shares`, by largest remainder."""
    exact = [size * share for share in shares]
    counts = [int(value) for value in exact]
    by_remainder = sorted(range(len(shares)), key=lambda i: counts[i] - exact[i])
    for i in by_remainder[: size - sum(counts)]:
        counts[i] += 1
    return counts


def scenes(pool: str, settings: WorldSettings) -> list[Scene]:
    """A pool's comparisons, in order; kinds and labels are balanced exactly."""
    size: int = getattr(settings, pool)
    rng = random.Random(f"{settings.seed}/{pool}")
    kinds = [
        kind
        for kind, count in zip(KINDS, _quota(size, settings.mix), strict=True)
        for _ in range(count)
    ]
    rng.shuffle(kinds)
    labels = [1 + i % 2 for i in range(size)]
    rng.shuffle(labels)
    made = []
    for i, (kind, label) in enumerate(zip(kinds, labels, strict=True)):
        wanted = any_thing(rng)
        better, worse = contrast(wanted, kind, rng.random() < settings.flawed, rng)
        things = (better, worse) if label == 1 else (worse, better)
        prefix = "cold" if pool == "cold_start" else pool
        made.append(Scene(f"{prefix}_{i:04d}", wanted, things, label, kind))
    return made


def pictures(scene: Scene, settings: WorldSettings) -> Iterator[tuple[str, Image.Image]]:
    """File name and picture of Image 1, then of Image 2."""
    for letter, thing in zip("ab", scene.things, strict=True):
        rng = random.Random(f"{settings.seed}/{scene.name}/{letter}")
        yield f"{scene.name}_{letter}.png", draw(thing, rng, settings.noise)


def cold_start_row(scene: Scene, template: str, folder: str) -> dict[str, Any]:
    """A ShareGPT row; `folder` leads from the media root to the pictures."""
    prompt = "<image><image>" + prompts.fill(template, {"caption": scene.caption})
    images = [f"{folder}/{scene.name}_{letter}.png" for letter in "ab"]
    return {"conversations": conversation(prompt, teacher_cot(scene)), "images": images}


def raw_row(scene: Scene) -> dict[str, Any]:
    """A row of the raw preference format, as published data sets have it."""
    question = (
        "<image><image>Which image fits the caption better? Answer with one sentence.\n"
        f"{CAPTION_MARKER} [{scene.caption}]"
    )
    answer = f"Image {scene.label} is better than Image {3 - scene.label}."
    return {
        "prompt": scene.caption,
        "images": [f"{scene.name}_{letter}.png" for letter in "ab"],
        "conversations": conversation(question, answer),
    }


def read_summary(folder: Path, signature: dict[str, Any]) -> dict[str, Any] | None:
    """The folder's summary if it was made with the same settings, else None."""
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return summary if summary.get("settings") == signature else None


def write_data(settings: WorldSettings, command: list[str]) -> dict[str, Any]:
    """Write all pools below `settings.out` and return the summary, which is written last.

    A folder that already has these settings' summary is left as it is. Paths in cold_start.json
    are relative to the parent of `out` (the media root), those of the raw pools to `out`/images.
    """
    from tqdm import tqdm

    started = time.monotonic()
    signature = settings.signature
    if done := read_summary(settings.out, signature):
        print(f"{settings.out}: already made with these settings")
        return done
    template = settings.read_template()
    images = settings.out / "images"
    images.mkdir(parents=True, exist_ok=True)
    (settings.out / "summary.json").unlink(missing_ok=True)
    for stale in images.glob("*_[0-9]*_[ab].png"):
        stale.unlink()
    pools = {pool: scenes(pool, settings) for pool in POOLS}
    counts: dict[str, Any] = {}
    bar = tqdm(total=sum(map(len, pools.values())), desc="pictures", unit="pair")
    for pool, members in pools.items():
        for scene in members:
            for name, image in pictures(scene, settings):
                image.save(images / name, compress_level=1)
            bar.update()
        if pool == "cold_start":
            folder = f"{settings.out.name}/images"
            rows = [cold_start_row(scene, template, folder) for scene in members]
        else:
            rows = [raw_row(scene) for scene in members]
        store.write_json(settings.out / f"{pool}.json", rows)
        counts[pool] = {
            "rows": len(rows),
            "label_1": sum(scene.label == 1 for scene in members),
            "kinds": dict(Counter(scene.kind for scene in members)),
        }
    bar.close()
    summary = {
        "counts": counts,
        "captions": len(COLOURS) * len(SHAPES),
        "settings": signature,
        "command": command,
        "versions": versions("numpy", "pillow"),
        "seconds": round(time.monotonic() - started, 1),
    }
    store.write_json(settings.out / "summary.json", summary)
    return summary
