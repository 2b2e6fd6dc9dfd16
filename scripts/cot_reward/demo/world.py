"""The demo's toy world: captions, pictures, comparisons, and chains of thought to start from.

A caption names a colour and a shape ("a red circle"). Of the two pictures of a comparison one fits
the caption better. Everything follows from the seed. There are only 18 captions, so the pools share
captions; no picture occurs twice.
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
SIDE_PIXELS = 56  # 4 x 4 patches of 14, so 4 image tokens after merging
# The attributes in which the two pictures of a comparison fit the caption differently.
KINDS = ("colour", "shape", "both")
# Points of a right and of a wrong attribute. The four possible sums are all different, so that
# pictures that fit differently never tie.
POINTS = {"colour": (9, 2), "shape": (8, 3)}
DIMENSIONS = ("Colour", "Shape")  # as a chain of thought calls them

Thing = tuple[str, str]  # colour, shape


@dataclass(frozen=True)
class Scene:
    """A comparison before it is drawn: Image i + 1 shows `things[i]`.

    `wanted` is the thing of the caption, `label` (1 or 2) the better image, `kind` one of KINDS.
    """

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


def random_thing(rng: random.Random) -> Thing:
    return rng.choice(list(COLOURS)), rng.choice(SHAPES)


def near_miss(wanted: Thing, kind: str, rng: random.Random) -> Thing:
    """A random thing that misses the wanted colour, shape or both, as `kind` says."""
    colour, shape = wanted
    if kind != "shape":
        colour = rng.choice([other for other in COLOURS if other != colour])
    if kind != "colour":
        shape = rng.choice([other for other in SHAPES if other != shape])
    return colour, shape


def contrast(wanted: Thing, kind: str, flawed: bool, rng: random.Random) -> tuple[Thing, Thing]:
    """A better and a worse thing, which differ in how the kind's attributes fit the caption.

    With `flawed` the better thing misses an attribute too. If one picture of each comparison were
    perfect, the model would infer the second picture from the first instead of looking, and a
    misread first picture would lead it into texts that it has never seen.
    """
    if not flawed:
        return wanted, near_miss(wanted, kind, rng)
    if kind == "shape":
        return near_miss(wanted, "colour", rng), near_miss(wanted, "both", rng)
    # When both things miss one attribute, the wrong shape costs less (POINTS).
    worse = near_miss(wanted, "both" if kind == "colour" else "colour", rng)
    return near_miss(wanted, "shape", rng), worse


def draw(thing: Thing, rng: random.Random, noise: float) -> Image.Image:
    """A square RGB picture: one filled shape, of random size and place, on a dark background.

    `noise` is the standard deviation of the pixels' Gaussian noise, of 255.
    """
    background = tuple(rng.randint(0, 50) for _ in range(3))
    image = Image.new("RGB", (SIDE_PIXELS, SIDE_PIXELS), background)
    pen, fill = ImageDraw.Draw(image), COLOURS[thing[0]]
    r = rng.randint(11, 20)
    x, y = (rng.randint(r + 2, SIDE_PIXELS - 2 - r) for _ in range(2))
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
    """What a picture shows, each attribute followed by its verdict: "red yes circle no".

    A tiny model compares badly over a distance. In this order a verdict stands one token behind the
    word that it is about.
    """
    return " ".join(_with_verdict(*pair) for pair in zip(shown, wanted, strict=True))


def _with_verdict(shown: str, wanted: str) -> str:
    """One attribute with its verdict: "circle no"."""
    return f"{shown} {'yes' if shown == wanted else 'no'}"


def observations(wanted: Thing, things: tuple[Thing, ...]) -> str:
    """The observations of all pictures: "Image 1 shows red yes circle no. Image 2 shows ..."."""
    return " ".join(
        f"Image {i} shows {observation(wanted, thing)}." for i, thing in enumerate(things, start=1)
    )


def points(wanted: Thing, shown: Thing) -> tuple[int, int]:
    """The scores, of 10, for colour and shape."""
    colour, shape = (
        right_and_wrong[attribute != wanted_attribute]
        for right_and_wrong, attribute, wanted_attribute in zip(
            POINTS.values(), shown, wanted, strict=True
        )
    )
    return colour, shape


def teacher_cot(scene: Scene) -> str:
    """The right chain of thought: for each dimension observations and scores; totals; the answer.

    A score stands behind its observation. With the observations on a line of their own, texts whose
    scores did not fit their observations passed the judge, and stages 2 and 3 learned to guess
    scores.
    """
    wanted, (first, second) = scene.wanted, scene.things
    first_points, second_points = points(wanted, first), points(wanted, second)
    lines = [
        "<think>",
        *(
            f"{i + 1}. {dimension}: "
            f"Image 1 {_with_verdict(first[i], wanted[i])} ({first_points[i]}/10); "
            f"Image 2 {_with_verdict(second[i], wanted[i])} ({second_points[i]}/10)"
            for i, dimension in enumerate(DIMENSIONS)
        ),
        "Total score:",
        total_lines(first_points, second_points),
        "</think>",
        f"<answer>Image {scene.label} is better</answer>",
    ]
    return "\n".join(lines)


def score_lines(first: tuple[int, int], second: tuple[int, int]) -> str:
    """A line for each dimension: "1. Colour: Image 1 (9/10); Image 2 (2/10)"."""
    return "\n".join(
        f"{i}. {dimension}: Image 1 ({points_1}/10); Image 2 ({points_2}/10)"
        for i, (dimension, points_1, points_2) in enumerate(
            zip(DIMENSIONS, first, second, strict=True), start=1
        )
    )


def total_lines(first: tuple[int, int], second: tuple[int, int]) -> str:
    """A line for each image: "Image 1: 9+3=12"."""
    return "\n".join(
        f"Image {i}: {scores[0]}+{scores[1]}={sum(scores)}"
        for i, scores in enumerate((first, second), start=1)
    )


def _split_by_shares(size: int, shares: tuple[float, ...]) -> list[int]:
    """`size` split into whole numbers by `shares`, with the method of largest remainders."""
    exact = [size * share for share in shares]
    counts = [int(value) for value in exact]
    by_remainder = sorted(range(len(shares)), key=lambda i: counts[i] - exact[i])
    for i in by_remainder[: size - sum(counts)]:
        counts[i] += 1
    return counts


def scenes(pool: str, settings: WorldSettings) -> list[Scene]:
    """The comparisons of a pool, in order; kinds and labels have their shares exactly."""
    size: int = getattr(settings, pool)
    rng = random.Random(f"{settings.seed}/{pool}")
    kinds = [
        kind
        for kind, count in zip(KINDS, _split_by_shares(size, settings.mix), strict=True)
        for _ in range(count)
    ]
    rng.shuffle(kinds)
    labels = [1 + i % 2 for i in range(size)]
    rng.shuffle(labels)
    made: list[Scene] = []
    for i, (kind, label) in enumerate(zip(kinds, labels, strict=True)):
        wanted = random_thing(rng)
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
    """A row of raw preference data, in the form of published data sets."""
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
    """The folder's summary if it says that these settings made the folder, else None."""
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return summary if summary.get("settings") == signature else None


def write_data(settings: WorldSettings, command: list[str]) -> dict[str, Any]:
    """Write all pools below `settings.out` and return the summary, which is written last.

    A folder whose summary has the same settings is left as it is. Paths in cold_start.json are
    relative to the parent of `out` (the media root), paths in the raw pools to `out`/images.
    """
    started = time.monotonic()
    signature = settings.signature
    if summary := read_summary(settings.out, signature):
        print(f"{settings.out}: already made with these settings")
        return summary
    template = settings.read_template()
    images = settings.out / "images"
    images.mkdir(parents=True, exist_ok=True)
    (settings.out / "summary.json").unlink(missing_ok=True)
    for stale in images.glob("*_[0-9]*_[ab].png"):
        stale.unlink()
    pools = {pool: scenes(pool, settings) for pool in POOLS}
    _draw_all([scene for members in pools.values() for scene in members], images, settings)
    for pool, members in pools.items():
        if pool == "cold_start":
            folder = f"{settings.out.name}/images"
            rows = [cold_start_row(scene, template, folder) for scene in members]
        else:
            rows = [raw_row(scene) for scene in members]
        store.write_json(settings.out / f"{pool}.json", rows)
    summary = {
        "counts": {pool: _counts(members) for pool, members in pools.items()},
        "captions": len(COLOURS) * len(SHAPES),
        "settings": signature,
        "command": command,
        "versions": versions("numpy", "pillow"),
        "seconds": round(time.monotonic() - started, 1),
    }
    store.write_json(settings.out / "summary.json", summary)
    return summary


def _draw_all(members: list[Scene], folder: Path, settings: WorldSettings) -> None:
    """Write the pictures of these comparisons, with a progress bar."""
    from tqdm import tqdm

    for scene in tqdm(members, desc="pictures", unit="pair"):
        for name, image in pictures(scene, settings):
            image.save(folder / name, compress_level=1)


def _counts(members: list[Scene]) -> dict[str, Any]:
    """What the summary says of a pool."""
    return {
        "rows": len(members),
        "label_1": sum(scene.label == 1 for scene in members),
        "kinds": dict(Counter(scene.kind for scene in members)),
    }
