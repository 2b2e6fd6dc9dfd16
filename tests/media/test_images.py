"""The pixel bound against LLaMA-Factory and vLLM, what needs it, and broken files."""

import hashlib
import inspect
import json
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cot_reward.media.images import (
    MAX_PIXELS,
    bound,
    inspect_image,
    load_image,
    needs_bound,
)
from cot_reward.media.paths import LFS_POINTER, MediaError
from helpers.environments import REPO
from helpers.llama_factory import LlamaFactory, Outline, digest, running_llama_factory
from helpers.pictures import (
    bounded_pictures,
    encoded,
    noise,
    reason_of,
    saved,
    unchanged_pictures,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile
from PIL.PngImagePlugin import PngInfo

# Which of the two environments exists depends on the machine.
SERVE_PYTHONS = [REPO / f".envs/{name}/bin/python" for name in ("serve-cpu", "serve")]


@pytest.fixture(scope="module")
def llama_factory() -> Iterator[LlamaFactory]:
    with running_llama_factory() as running:
        yield running


def ours(kind: str, args: tuple[Any, ...], max_pixels: int) -> list[Any] | None:
    image: Any = Outline(*args) if kind == "outline" else noise(*args)
    try:
        image = bound(image, max_pixels)
    except MediaError as error:
        return None if error.reason == "too_large" else [str(error)]
    return [image.mode, *image.size] if kind == "outline" else digest(image)


@pytest.mark.slow
def test_sizes_are_those_of_llama_factory(llama_factory: LlamaFactory) -> None:
    dice = random.Random(0)

    def side() -> int:
        return int(2 ** dice.uniform(0, 14))

    questions = [("outline", (side(), side()), MAX_PIXELS) for _ in range(5000)]
    questions += [("outline", (side(), side()), dice.randint(2048, 10**6)) for _ in range(2000)]
    expected = llama_factory.ask(questions)
    assert [ours(*question) for question in questions] == expected


sides = st.one_of(st.integers(1, 64), st.integers(1, 4000), st.integers(1, 2_000_000))


@pytest.mark.slow
@settings(max_examples=500, deadline=None)
@given(width=sides, height=sides, max_pixels=st.sampled_from([1024, 16384, 262144, 589824]))
def test_any_size_is_that_of_llama_factory(
    llama_factory: LlamaFactory, width: int, height: int, max_pixels: int
) -> None:
    question = ("outline", (width, height), max_pixels)
    assert [ours(*question)] == llama_factory.ask([question])


MODES = ["RGB", "L", "RGBA", "LA", "P", "1", "CMYK", "I;16"]


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_pixels_are_those_of_llama_factory(llama_factory: LlamaFactory, mode: str) -> None:
    sizes = [(700, 500), (512, 512), (513, 512), (300, 200), (20, 20), (9, 400), (5, 1200)]
    questions = [("noise", (mode, *size, index), 262144) for index, size in enumerate(sizes)]
    assert [ours(*question) for question in questions] == llama_factory.ask(questions)


def test_bound_leaves_the_source_alone_and_drops_metadata() -> None:
    image = noise("RGB", 60, 60, 0)
    image.info = {"transparency": (0, 0, 0), "icc_profile": b"x"}
    result = bound(image)
    assert result is not image
    assert result.info == {}
    assert image.info["transparency"] == (0, 0, 0)


VLLM = """
import hashlib, json, sys
from pathlib import Path
from typing import Any
from PIL import Image
from vllm.multimodal.media.image import ImageMediaIO

{digest}
seen = [digest(ImageMediaIO().load_bytes(Path(name).read_bytes()).media) for name in sys.argv[2:]]
Path(sys.argv[1]).write_text(json.dumps(seen))
"""


@pytest.mark.slow
def test_vllm_and_llama_factory_see_the_same_pixels(
    tmp_path: Path, llama_factory: LlamaFactory
) -> None:
    python = next((path for path in SERVE_PYTHONS if path.exists()), None)
    assert python, f"{SERVE_PYTHONS[0]} is missing: make envs"
    sources, sent = [], []
    for name, (image, options) in (bounded_pictures() | unchanged_pictures()).items():
        sources.append(saved(tmp_path / name, image, **options))
        sent.append(tmp_path / f"{name}.sent")
        sent[-1].write_bytes(encoded(sources[-1], 262144, None)[0])
    answers = tmp_path / "answers.json"
    script = VLLM.replace("{digest}", inspect.getsource(digest))
    command = [str(part) for part in (python, "-c", script, answers, *sent)]
    subprocess.run(command, check=True, env=os.environ | {"VLLM_LOGGING_LEVEL": "ERROR"})

    bounded = [digest(bound(load_image(path))) for path in sources]
    assert llama_factory.ask([("file", [str(path)], 262144) for path in sources]) == bounded
    assert json.loads(answers.read_text()) == bounded


def test_needs_bound() -> None:
    assert not needs_bound(Image.new("RGB", (512, 512)), 262144)
    assert not needs_bound(Image.new("L", (28, 5600)), 262144)
    assert needs_bound(Image.new("RGB", (513, 512)), 262144)
    assert needs_bound(Image.new("RGB", (27, 100)), 262144)
    assert needs_bound(Image.new("RGB", (28, 5601)), 262144)
    assert needs_bound(Image.new("RGBA", (100, 100)), 262144)


# --- broken files ---------------------------------------------------------------------------------
@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_complete_files_are_loaded_and_truncated_files_are_refused(
    tmp_path: Path, format_: str
) -> None:
    path = saved(tmp_path / "a.img", noise("RGB", 64, 48, 0), format=format_)
    assert load_image(path).size == (64, 48)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert reason_of(load_image, path) == "corrupt"


def test_a_library_that_allows_truncated_images_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path / "a.jpg", noise("RGB", 256, 256, 0))
    path.write_bytes(path.read_bytes()[:9000])
    Image.open(path).verify()  # Pillow's own check accepts it
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    assert reason_of(load_image, path) == "corrupt"


def test_load_reasons(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    assert reason_of(load_image, path) == "missing"
    assert reason_of(load_image, tmp_path) == "missing"
    path.write_bytes(b"")
    assert reason_of(load_image, path) == "empty"
    path.write_text("not an image")
    assert reason_of(load_image, path) == "not_an_image"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    assert reason_of(load_image, path) == "not_an_image"
    with pytest.raises(MediaError, match=r"a\.png"):
        load_image(path)


def test_a_git_lfs_pointer_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(LFS_POINTER + b"v1\noid sha256:0\nsize 9\n")
    assert reason_of(load_image, path) == "lfs_pointer"
    assert reason_of(encoded, path, MAX_PIXELS, None) == "lfs_pointer"
    with pytest.raises(MediaError, match=r"a\.png: a Git LFS pointer.*git lfs pull"):
        inspect_image(path)


@pytest.mark.parametrize("packed", [True, False])
def test_texts_that_are_too_large_are_named(tmp_path: Path, packed: bool) -> None:
    """Pillow reads a megabyte of one packed text, and 64 megabytes of all texts."""
    texts = PngInfo()
    for number in range(2 if packed else 70):
        texts.add_text(f"workflow {number}", "x" * 2**20 + "y", zip=packed)
    path = saved(tmp_path / "a.png", noise("RGB", 30, 30, 0), pnginfo=texts)
    assert reason_of(load_image, path) == "metadata"
    with pytest.raises(MediaError, match=r"a\.png: texts inside the PNG.*without them"):
        inspect_image(path)


def test_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A few kilobytes that would decode to 200 million pixels.
    path = saved(tmp_path / "bomb.png", Image.new("1", (20_000, 10_000)))
    assert path.stat().st_size < 50_000
    assert reason_of(load_image, path) == "too_large"
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # our limit holds without Pillow's
    assert reason_of(load_image, path) == "too_large"


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue")]
    path = saved(tmp_path / "a.gif", frames[0], save_all=True, append_images=frames[1:])
    assert bound(load_image(path)).getpixel((5, 5)) == (255, 0, 0)


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
@pytest.mark.parametrize("size", [(64, 64), (1000, 700), (20, 300), (10, 5000)])
def test_inspect_tells_the_size_that_bound_gives(
    tmp_path: Path, name: str, size: tuple[int, int]
) -> None:
    path = tmp_path / name
    Image.new("RGB", size, (9, 80, 200)).save(path)
    digest, shown = inspect_image(path, 100_000)
    assert shown == bound(load_image(path), 100_000).size
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(MediaError, match="broken or cut"):
        inspect_image(path, 100_000)
