"""The pictures that a RewardModel is given, and what the server is sent of them."""

import asyncio
import base64
import io
import os

import pytest
from cot_reward import RewardModel
from helpers.pictures import as_bytes, bounded_pictures, encoded, grey, noise, picture, saved
from PIL import Image

CAPTION = "a cat"


def test_paths_bytes_and_pictures_are_the_same_question(sees, model, tmp_path):
    light, dark = picture(tmp_path / "a.png", (200,) * 3), picture(tmp_path / "b.png", (9,) * 3)
    link = tmp_path / "link.png"
    link.symlink_to(light)
    forms = [light, str(light), light.read_bytes(), bytearray(light.read_bytes()), link]
    found = [model.compare(CAPTION, form, dark) for form in forms]
    assert all(one == found[0] for one in found)
    assert found[0].answer == 1
    assert model.compare(CAPTION, Image.open(light), dark).answer == 1
    # One file and its bytes are one content; a picture in memory is another.
    assert model.encoded_pictures == 3
    sent = {url for entry in sees.log() for url in entry["images"]}
    assert len(sent) == 3


@pytest.mark.parametrize("name", bounded_pictures())
def test_the_model_sees_the_pixels_of_the_chain(sees, model, tmp_path, name):
    image, options = bounded_pictures()[name]
    file = saved(tmp_path / name, image, **options)
    data, mime = encoded(file, 262144, None)
    for form in (file, file.read_bytes(), Image.open(file)):
        sees.configure(sees=True)
        model.compare(CAPTION, form, grey(1))
        urls = {url for entry in sees.log() for url in entry["images"]}
        kind, _, sent = next(u for u in urls if u != _url(grey(1))).partition(",")
        assert kind == f"data:{mime};base64"
        seen = Image.open(io.BytesIO(base64.b64decode(sent)))
        wanted = Image.open(io.BytesIO(data))
        assert (seen.mode, seen.size, seen.tobytes()) == ("RGB", wanted.size, wanted.tobytes())


def _url(image):
    return "data:image/png;base64," + base64.b64encode(as_bytes(image, compress_level=2)).decode()


def test_each_picture_is_encoded_once(model):
    pictures = [noise("RGB", 60, 60, seed) for seed in range(6)]
    ranking = model.rank(CAPTION, [as_bytes(one) for one in pictures])
    assert len(ranking.comparisons) == 15
    assert model.encoded_pictures == 6
    model.compare_many([(CAPTION, as_bytes(pictures[0]), as_bytes(one)) for one in pictures[1:]])
    assert model.encoded_pictures == 6


def test_nothing_is_written(sees, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    with RewardModel(sees.url) as model:
        assert model.compare(CAPTION, noise("RGB", 900, 900, 0), as_bytes(grey(3), "BMP"))
    assert list(tmp_path.iterdir()) == []


def test_bad_pictures_are_failures_and_the_others_go_on(model, tmp_path):
    good = picture(tmp_path / "good.png", (200,) * 3)
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "text.png").write_text("no picture")
    jpeg = as_bytes(noise("RGB", 300, 300, 0), "JPEG")
    cut = io.BytesIO(jpeg[:5000])
    (tmp_path / "pointer.png").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    bad = [
        (tmp_path / "none.png", "missing"), (tmp_path, "missing"),
        (tmp_path / "pipe.png", "missing"), ("/dev/zero", "missing"), ("a\0b", "missing"),
        ("x" * 5000, "missing"), (tmp_path / "text.png", "not_an_image"),
        (tmp_path / "pointer.png", "lfs_pointer"), (b"", "empty"), (jpeg[:5000], "corrupt"),
        (Image.open(cut), "corrupt"), (Image.new("RGB", (0, 9)), "empty"),
        (as_bytes(Image.new("1", (15_000, 15_000))), "too_large"),
        (as_bytes(Image.new("RGB", (600_000, 1))), "too_large"),
    ]  # fmt: skip
    found = model.compare_many(
        [(CAPTION, one, good) for one, _ in bad] + [(CAPTION, good, grey(1))]
    )
    assert [one.reason for one in found[:-1]] == [reason for _, reason in bad]
    assert all(not one and one.detail for one in found[:-1])
    assert found[-1].answer == 1
    ranking = model.rank(CAPTION, [bad[0][0], grey(9), good, b"x"])
    assert ranking.order == (2, 1, 0, 3)
    assert {i: one.reason for i, one in ranking.failures.items()} == {
        0: "missing",
        3: "not_an_image",
    }
    assert ranking.as_dict()["strengths"][0] is None


def test_a_picture_that_several_use_is_read_once_and_whole(sees, model, tmp_path):
    """Pillow reads an opened picture when it is used, and not from several threads."""
    data = as_bytes(noise("RGB", 480, 480, 0), "JPEG")
    whole = as_bytes(Image.open(io.BytesIO(data)).convert("RGB").resize((8, 8)))
    for _ in range(10):
        opened = Image.open(io.BytesIO(data))
        found = model.compare_many([(f"{CAPTION} {n}", opened, grey(n)) for n in range(3)])
        assert all(found)
    shown = {url for entry in sees.log() for url in entry["images"] if len(url) > 10_000}
    assert len(shown) == 1
    sent = Image.open(io.BytesIO(base64.b64decode(shown.pop().partition(",")[2])))
    assert as_bytes(sent.resize((8, 8))) == whole


def test_a_picture_may_be_drawn_on_after_the_call(sees):
    async def use():
        async with RewardModel(sees.url, concurrency=1, orders="given") as model:
            canvas, tasks = grey(0), []
            for light in (10, 90):
                canvas.paste((light,) * 3, (0, 0, *canvas.size))
                tasks.append(asyncio.create_task(model.acompare(CAPTION, canvas, grey(50))))
                await asyncio.sleep(0)
            return [found.answer for found in await asyncio.gather(*tasks)]

    assert asyncio.run(use()) == [2, 1]
