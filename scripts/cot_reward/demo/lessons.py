"""The lessons of the demo's base model: it names what pictures show, gives points, adds up.

A model must see before it can judge. No lesson has the form of the task's chain of thought.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from cot_reward.demo import world
from cot_reward.tasks.generation import CAPTION_MARKER

# What may stand before the image with the higher total.
BEST_WORDS = ("More: ", "Best: ", "So it is ", "It follows: ", "[", "*", "#", "(", "=", "")


@dataclass(frozen=True)
class Lesson:
    """A prompt with `<image>` placeholders, the text to learn, and the pictures in their order."""

    prompt: str
    target: str
    images: tuple[Image.Image, ...]


def picture_lesson(rng: random.Random, noise: float) -> Lesson:
    """A description (30%) or a check against a caption of one or two (70%) new pictures.

    A check of two goes on with their totals.
    """
    number = 2 if rng.random() < 0.7 else 1
    noun = "images" if number == 2 else "image"
    wanted, *things = (random_thing(rng) for _ in range(1 + number))
    images = tuple(world.draw(thing, rng, noise) for thing in things)
    if rng.random() < 0.3:
        target = " ".join(
            f"Image {i} shows {' '.join(world.words(thing))}."
            for i, thing in enumerate(things, start=1)
        )
        return Lesson("<image>" * number + f"Describe the {noun}.", target, images)
    prompt = "<image>" * number + check_prompt(noun, wanted)
    target = world.observations(wanted, things)
    if number == 2:
        target += "\n" + _totals(wanted, things, rng)
    return Lesson(prompt, target, images)


def sum_lesson(rng: random.Random) -> Lesson:
    """Points to copy, to add up and to compare, without pictures."""
    wanted, *things = (random_thing(rng) for _ in range(3))
    prompt = f"Add up.\n{world.observations(wanted, things)}"
    return Lesson(prompt, _totals(wanted, things, rng), ())


def _totals(wanted: world.Thing, things: Sequence[world.Thing], rng: random.Random) -> str:
    """The totals of two pictures and, unless they are equal, the image with more.

    The word before this image changes, so that the base learns to compare totals wherever an image
    is to be named. With one word for it, answers of the task left their own totals in 17% of texts.
    """
    first, second = (world.points(wanted, thing) for thing in things)
    lines = [world.total_lines(first, second)]
    if sum(first) != sum(second):
        lines.append(f"{rng.choice(BEST_WORDS)}Image {1 + (sum(first) < sum(second))}")
    return "\n".join(lines)


def points_lesson(rng: random.Random) -> Lesson:
    """A check of two pictures that are not shown.

    Its points follow from the words before them. What the pictures show cannot be known, so the
    training learns the points only.
    """
    wanted, *things = (random_thing(rng) for _ in range(3))
    return Lesson(check_prompt("images", wanted), world.observations(wanted, things), ())


def check_prompt(noun: str, wanted: world.Thing) -> str:
    """The request to check one "image" or two "images" against a caption."""
    return f"Check the {noun}. {CAPTION_MARKER} [{world.caption(wanted)}]"


def random_thing(rng: random.Random) -> world.Thing:
    """A combination that may be trained on."""
    return rng.choice(world.TRAINED_THINGS)
