"""The demo's toy world: captions, pictures, comparisons, and chains of thought to start from.

A caption names a size and a shade of grey ("a large pale disc"). Each picture shows one disc, and
loses points for every step that its size or shade lies away from the caption. Of the two pictures
of a comparison one has more points. Everything follows from the seed. There are only 64 captions,
so the pools share captions; no picture occurs twice.
"""

import json
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
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

# Both attributes lie on a line, so that a tiny model can learn distances in minutes. It did not
# learn the distances of hues, which lie in a circle (tests/bench/RESULTS.md).
SHADES = ("black", "coal", "dark", "dim", "grey", "pale", "light", "white")
SIZES = ("tiny", "little", "small", "modest", "medium", "large", "big", "huge")
GREY_LEVELS = range(40, 280, 30)  # of 255, by shade
RADII = (5, 7, 9, 12, 14, 17, 20, 23)  # pixels, by size
BACKGROUND = (20, 40, 120)  # blue, so that no disc is invisible
SIDE_PIXELS = 56  # 4 x 4 patches of 14, so 4 image tokens after merging
DIMENSIONS = ("Shade", "Size")  # as a chain of thought calls them

FULL_POINTS = 40  # for a perfect shade, and for a perfect size
# Points that a step away from the caption costs. With different costs few misread pictures tie.
# Every score and every total has two digits.
STEP_COSTS = (3, 2)
# Differences between the totals of two pictures. A gap of 1 can be misjudged by one misread step.
GAPS = {"close": 1, "clear": 5}

Thing = tuple[int, int]  # places of its shade in SHADES and of its size in SIZES

THINGS: tuple[Thing, ...] = tuple(
    (shade, size) for shade in range(len(SHADES)) for size in range(len(SIZES))
)


def is_new(thing: Thing) -> bool:
    """Whether nothing is trained on this combination of shade and size: 16 of the 64.

    Every shade and every size is in two of them.
    """
    shade, size = thing
    return (shade - size) % 4 == 0


TRAINED_THINGS = tuple(thing for thing in THINGS if not is_new(thing))
NEW_THINGS = tuple(thing for thing in THINGS if is_new(thing))


@dataclass(frozen=True)
class Scene:
    """A comparison before it is drawn: Image i + 1 shows `things[i]`.

    `wanted` is the thing of the caption, `label` (1 or 2) the better image, `kind` one of GAPS.
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
    shade, size = words(thing)
    return f"a {size} {shade} disc"


def words(thing: Thing) -> tuple[str, str]:
    """The words for its shade and its size."""
    return SHADES[thing[0]], SIZES[thing[1]]


def points(wanted: Thing, shown: Thing) -> tuple[int, int]:
    """The scores, of FULL_POINTS, for shade and size."""
    shade, size = (
        FULL_POINTS - cost * abs(there - here)
        for cost, there, here in zip(STEP_COSTS, shown, wanted, strict=True)
    )
    return shade, size


def contrast(things: Sequence[Thing], gap: int, rng: random.Random) -> tuple[Thing, Thing, Thing]:
    """A wanted, a better and a worse thing of `things`, whose totals differ by `gap`."""
    while True:
        wanted, better = rng.choice(things), rng.choice(things)
        total = sum(points(wanted, better)) - gap
        if worse := [thing for thing in things if sum(points(wanted, thing)) == total]:
            return wanted, better, rng.choice(worse)


def draw(thing: Thing, rng: random.Random, noise: float) -> Image.Image:
    """A square RGB picture: one grey disc at a random place.

    `noise` is the standard deviation of the pixels' Gaussian noise, of 255.
    """
    image = Image.new("RGB", (SIDE_PIXELS, SIDE_PIXELS), BACKGROUND)
    level, r = GREY_LEVELS[thing[0]], RADII[thing[1]]
    x, y = (rng.randint(r + 2, SIDE_PIXELS - 2 - r) for _ in range(2))
    ImageDraw.Draw(image).ellipse([x - r, y - r, x + r, y + r], fill=(level, level, level))
    grain = np.random.default_rng(rng.getrandbits(64))
    pixels = np.asarray(image, dtype=np.float32)
    pixels = pixels + noise * grain.standard_normal(pixels.shape, dtype=np.float32)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def observations(wanted: Thing, things: Sequence[Thing]) -> str:
    """A line for each dimension: "1. Shade: Image 1 dim (37/40); Image 2 grey (40/40)".

    A score stands directly behind the word that it is about: a tiny model compares badly over a
    distance. With the observations on a line of their own, texts whose scores did not fit their
    observations passed the judge, and stages 2 and 3 learned to guess scores.
    """
    scores = [points(wanted, thing) for thing in things]
    return "\n".join(
        f"{i + 1}. {dimension}: "
        + "; ".join(
            f"Image {number} {words(thing)[i]} ({score[i]}/{FULL_POINTS})"
            for number, (thing, score) in enumerate(zip(things, scores, strict=True), start=1)
        )
        for i, dimension in enumerate(DIMENSIONS)
    )


def teacher_cot(scene: Scene) -> str:
    """The right chain of thought: what is seen, with scores; totals; the answer."""
    lines = [
        "<think>",
        observations(scene.wanted, scene.things),
        "Total score:",
        total_lines(*(points(scene.wanted, thing) for thing in scene.things)),
        "</think>",
        f"<answer>Image {scene.label} is better</answer>",
    ]
    return "\n".join(lines)


def total_lines(first: tuple[int, int], second: tuple[int, int]) -> str:
    """A line for each image: "Image 1: 37+40=77"."""
    return "\n".join(
        f"Image {i}: {scores[0]}+{scores[1]}={sum(scores)}"
        for i, scores in enumerate((first, second), start=1)
    )


def scenes(pool: str, settings: WorldSettings) -> list[Scene]:
    """The comparisons of a pool, in order; half of the labels are 1, `close` of the gaps small."""
    size: int = getattr(settings, pool)
    rng = random.Random(f"{settings.seed}/{pool}")
    close = round(size * settings.close)
    kinds = ["close"] * close + ["clear"] * (size - close)
    rng.shuffle(kinds)
    labels = [1 + i % 2 for i in range(size)]
    rng.shuffle(labels)
    things = NEW_THINGS if pool == "heldout_new" else TRAINED_THINGS
    made: list[Scene] = []
    for i, (kind, label) in enumerate(zip(kinds, labels, strict=True)):
        wanted, better, worse = contrast(things, GAPS[kind], rng)
        shown = (better, worse) if label == 1 else (worse, better)
        prefix = "cold" if pool == "cold_start" else pool
        made.append(Scene(f"{prefix}_{i:04d}", wanted, shown, label, kind))
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
        "captions": len(THINGS),
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
