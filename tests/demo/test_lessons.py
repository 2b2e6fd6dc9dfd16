"""The base's lessons: pictures are named and checked truly, sums are right, no task is shown."""

import random
import re

from cot_reward.demo import lessons, world

CAPTION = re.compile(r"Text Caption: \[a (\w+) (\w+)\]$")
OBSERVATION = re.compile(r"Image [12] shows (\w+) (yes|no) (\w+) (yes|no)\.")
DESCRIPTION = re.compile(r"Image [12] shows (\w+) (\w+)\.")


def check(lesson: lessons.Lesson) -> int:
    """Every verdict is "yes" where the word is that of the caption; returns the observations."""
    caption = CAPTION.search(lesson.prompt)
    assert caption
    found = OBSERVATION.findall(lesson.target)
    for colour, colour_verdict, shape, shape_verdict in found:
        assert colour_verdict == ("yes" if colour == caption[1] else "no")
        assert shape_verdict == ("yes" if shape == caption[2] else "no")
    return len(found)


def test_picture_lessons_are_descriptions_and_true_checks() -> None:
    rng = random.Random(0)
    made = [lessons.picture_lesson(rng, noise=0.0) for _ in range(400)]
    descriptions = 0
    for lesson in made:
        number = len(lesson.images)
        assert lesson.prompt.startswith("<image>" * number)
        assert lesson.prompt.count("<image>") == number
        if "Describe" in lesson.prompt:
            descriptions += 1
            things = DESCRIPTION.findall(lesson.target)
            assert len(things) == number
            for (colour, _), image in zip(things, lesson.images, strict=True):
                shades = {shade for _, shade in image.getcolors(world.SIDE_PIXELS**2)}
                assert world.COLOURS[colour] in shades
        else:
            assert check(lesson) == number
    assert 0.25 < descriptions / len(made) < 0.35
    assert 0.65 < sum(len(lesson.images) == 2 for lesson in made) / len(made) < 0.75


def test_sums_are_right() -> None:
    rng = random.Random(0)
    for _ in range(50):
        lesson = lessons.sum_lesson(rng)
        assert not lesson.images
        points = re.findall(r"Image 1 \((\d)/10\); Image 2 \((\d)/10\)", lesson.prompt)
        sums = re.findall(r"Image [12]: (\d)\+(\d)=(\d+)", lesson.target)
        assert [tuple(column) for column in zip(*points, strict=True)] == [
            (first, second) for first, second, _ in sums
        ]
        assert all(int(first) + int(second) == int(total) for first, second, total in sums)


def test_verdict_lessons_have_no_pictures() -> None:
    rng = random.Random(0)
    for _ in range(50):
        lesson = lessons.verdict_lesson(rng)
        assert not lesson.images
        assert "<image>" not in lesson.prompt
        assert check(lesson) == 2


def test_no_lesson_shows_the_form_of_the_task() -> None:
    rng = random.Random(0)
    for _ in range(50):
        for lesson in (
            lessons.picture_lesson(rng, 10.0),
            lessons.sum_lesson(rng),
            lessons.verdict_lesson(rng),
        ):
            text = lesson.prompt + lesson.target
            assert not any(part in text for part in ("<think>", "<answer>", "is better"))


def test_a_picture_shows_the_wanted_thing_in_a_third_of_cases() -> None:
    rng = random.Random(0)
    wanted = ("red", "circle")
    shown = [lessons.random_shown_thing(wanted, rng) for _ in range(3000)]
    assert 0.3 < shown.count(wanted) / len(shown) < 0.37
