"""The lessons of the demo's base model: it names what pictures show, checks captions, adds up.

A model must see before it can judge. No lesson has the form of the task's chain of thought.
"""

import random
from dataclasses import dataclass

from PIL import Image

from cot_reward.demo import world
from cot_reward.tasks.generation import CAPTION_MARKER


@dataclass(frozen=True)
class Lesson:
    """A prompt with `<image>` placeholders, the text to learn, and the pictures in their order."""

    prompt: str
    target: str
    images: tuple[Image.Image, ...]


def picture_lesson(rng: random.Random, noise: float) -> Lesson:
    """A description (30%) or a check against a caption of one or two (70%) new pictures."""
    number = 2 if rng.random() < 0.7 else 1
    noun = "images" if number == 2 else "image"
    wanted = world.random_thing(rng)
    things = tuple(random_shown_thing(wanted, rng) for _ in range(number))
    images = tuple(world.draw(thing, rng, noise) for thing in things)
    if rng.random() < 0.3:
        target = " ".join(
            f"Image {i} shows {colour} {shape}."
            for i, (colour, shape) in enumerate(things, start=1)
        )
        return Lesson("<image>" * number + f"Describe the {noun}.", target, images)
    prompt = "<image>" * number + check_prompt(noun, wanted)
    return Lesson(prompt, world.observations(wanted, things), images)


def sum_lesson(rng: random.Random) -> Lesson:
    """Points to copy and add up, without pictures."""
    points = sorted(point for pair in world.POINTS.values() for point in pair)
    first, second = (
        (rng.choice(points), rng.choice(points)),
        (rng.choice(points), rng.choice(points)),
    )
    prompt = f"Add up.\n{world.score_lines(first, second)}"
    return Lesson(prompt, world.total_lines(first, second), ())


def verdict_lesson(rng: random.Random) -> Lesson:
    """A check of two pictures that are not shown.

    Its verdicts follow from the words before them. What the pictures show cannot be known, so the
    training learns the verdicts only.
    """
    wanted = world.random_thing(rng)
    things = (random_shown_thing(wanted, rng), random_shown_thing(wanted, rng))
    return Lesson(check_prompt("images", wanted), world.observations(wanted, things), ())


def check_prompt(noun: str, wanted: world.Thing) -> str:
    """The request to check one "image" or two "images" against a caption."""
    return f"Check the {noun}. {CAPTION_MARKER} [{world.caption(wanted)}]"


def random_shown_thing(wanted: world.Thing, rng: random.Random) -> world.Thing:
    """What a picture for this caption shows: the wanted thing in a third of cases, else a miss."""
    if rng.random() < 1 / 3:
        return wanted
    return world.near_miss(wanted, rng.choice(("colour", "shape", "shape", "both")), rng)
