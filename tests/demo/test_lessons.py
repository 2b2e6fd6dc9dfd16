"""The base's lessons: pictures are named and checked truly, sums are right, no task is shown."""

import random
import re

from cot_reward.demo import lessons, world

CAPTION = re.compile(r"Text Caption: \[a (\w+) (\w+) disc\]$")
SEEN = r"(\w+) \((\d+)/40\)"
LINE = re.compile(rf"^[12]\. (?:Shade|Size): Image 1 {SEEN}(?:; Image 2 {SEEN})?$", re.MULTILINE)
DESCRIPTION = re.compile(r"Image [12] shows (\w+) (\w+)\.")


def thing(shade: str, size: str) -> world.Thing:
    return world.SHADES.index(shade), world.SIZES.index(size)


def check(lesson: lessons.Lesson) -> int:
    """The points are true, and nothing is shown that must not be; returns the observations."""
    caption = CAPTION.search(lesson.prompt)
    assert caption
    wanted = thing(caption[2], caption[1])
    (shades, sizes) = ([part for part in line if part] for line in LINE.findall(lesson.target))
    shown = list(zip(shades[::2], sizes[::2], strict=True))
    scores = list(zip(map(int, shades[1::2]), map(int, sizes[1::2]), strict=True))
    assert [world.points(wanted, thing(*pair)) for pair in shown] == scores
    assert not any(map(world.is_new, (wanted, *(thing(*pair) for pair in shown))))
    return len(shown)


def test_picture_lessons_are_descriptions_and_true_checks() -> None:
    rng = random.Random(0)
    made = [lessons.picture_lesson(rng, noise=0.0) for _ in range(2000)]
    descriptions = 0
    for lesson in made:
        number = len(lesson.images)
        assert lesson.prompt.startswith("<image>" * number)
        assert lesson.prompt.count("<image>") == number
        if "Describe" in lesson.prompt:
            descriptions += 1
            things = DESCRIPTION.findall(lesson.target)
            assert len(things) == number
            for (shade, _), image in zip(things, lesson.images, strict=True):
                level = world.GREY_LEVELS[world.SHADES.index(shade)]
                colours = {colour for _, colour in image.getcolors(world.SIDE_PIXELS**2)}
                assert colours == {(level,) * 3, world.BACKGROUND}
        else:
            assert check(lesson) == number
    assert 0.25 < descriptions / len(made) < 0.35
    assert 0.65 < sum(len(lesson.images) == 2 for lesson in made) / len(made) < 0.75


def check_totals(observed: str, lines: list[str]) -> str:
    """The totals are the sums of the points, in their order; returns what is said of the best."""
    points = [re.findall(r"\((\d+)/40\)", line) for line in observed.splitlines() if "/40" in line]
    sums = re.findall(r"Image [12]: (\d+)\+(\d+)=(\d+)", "\n".join(lines[:2]))
    assert list(zip(*points, strict=True)) == [(first, second) for first, second, _ in sums]
    assert all(int(first) + int(second) == int(total) for first, second, total in sums)
    first, second = (int(total) for *_, total in sums)
    said = lines[2] if len(lines) > 2 else ""
    named = "" if first == second else f"Image {1 + (first < second)}"
    assert said.endswith(named)
    return said.removesuffix(named)


def test_sums_and_comparisons_are_right() -> None:
    rng = random.Random(0)
    texts = [lessons.sum_lesson(rng) for _ in range(300)]
    assert not any(lesson.images for lesson in texts)
    said = {check_totals(lesson.prompt, lesson.target.splitlines()) for lesson in texts}
    assert said == {"", *lessons.BEST_WORDS}
    pictures = [lessons.picture_lesson(rng, noise=0.0) for _ in range(100)]
    checks = [
        lesson for lesson in pictures if len(lesson.images) == 2 and "Describe" not in lesson.prompt
    ]
    assert len(checks) > 30
    for lesson in checks:
        check_totals(lesson.target, lesson.target.splitlines()[2:])


def test_points_lessons_have_no_pictures() -> None:
    rng = random.Random(0)
    for _ in range(50):
        lesson = lessons.points_lesson(rng)
        assert not lesson.images
        assert "<image>" not in lesson.prompt
        assert check(lesson) == 2


def test_no_lesson_shows_the_form_of_the_task() -> None:
    rng = random.Random(0)
    for _ in range(50):
        for lesson in (
            lessons.picture_lesson(rng, 10.0),
            lessons.sum_lesson(rng),
            lessons.points_lesson(rng),
        ):
            text = lesson.prompt + lesson.target
            assert not any(part in text for part in ("<think>", "<answer>", "is better"))
