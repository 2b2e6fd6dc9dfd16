"""What the base learns before the demo begins: naming what pictures show, checking, adding up.

A model must see before it can judge. No lesson has a chain of thought of the task.
"""

import random
from dataclasses import dataclass

from PIL import Image

from cot_reward.demo import world
from cot_reward.tasks.generation import CAPTION_MARKER


@dataclass(frozen=True)
class Row:
    """One text with `<image>` marks, the answer to learn, and what its pictures show."""

    prompt: str
    target: str
    images: tuple[Image.Image, ...]


def pretraining_row(rng: random.Random, noise: float) -> Row:
    """A caption or an attribute check over one or two fresh pictures."""
    number = 2 if rng.random() < 0.7 else 1
    noun = "images" if number == 2 else "image"
    wanted = world.any_thing(rng)
    things = tuple(shown_thing(wanted, rng) for _ in range(number))
    images = tuple(world.draw(thing, rng, noise) for thing in things)
    if rng.random() < 0.3:
        target = " ".join(
            f"Image {i} shows {colour} {shape}."
            for i, (colour, shape) in enumerate(things, start=1)
        )
        return Row("<image>" * number + f"Describe the {noun}.", target, images)
    return Row(
        "<image>" * number + check_prompt(noun, wanted), world.observations(wanted, things), images
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


def check_prompt(noun: str, wanted: world.Thing) -> str:
    return f"Check the {noun}. {CAPTION_MARKER} [{world.caption(wanted)}]"


def shown_thing(wanted: world.Thing, rng: random.Random) -> world.Thing:
    """What a picture for this caption shows: the wanted thing in a third of cases."""
    if rng.random() < 1 / 3:
        return wanted
    return world.near_miss(wanted, rng.choice(("colour", "shape", "shape", "both")), rng)


def verdict_row(rng: random.Random) -> Row:
    """A check without its pictures: only its verdicts can be learned, nothing shows the rest."""
    wanted = world.any_thing(rng)
    things = (shown_thing(wanted, rng), shown_thing(wanted, rng))
    return Row(check_prompt("images", wanted), world.observations(wanted, things), ())
