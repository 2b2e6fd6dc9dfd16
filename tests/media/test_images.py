"""The pixel bound against LLaMA-Factory's own, paths, broken files, and what travels."""

import contextlib
import hashlib
import inspect
import io
import json
import os
import random
import sqlite3
import subprocess
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cot_reward.media import sent
from cot_reward.media.images import (
    EXIF_ORIENTATION,
    MAX_BYTES,
    MAX_PIXELS,
    bound,
    inspect_image,
    load_image,
    needs_bound,
)
from cot_reward.media.paths import MediaError, resolve
from cot_reward.media.sent import MediaReader
from helpers.environments import REPO
from helpers.pictures import encoded
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

SFT_PYTHON = REPO / ".envs/sft/bin/python"
# Which of the two there is depends on the machine.
SERVE_PYTHONS = [REPO / f".envs/{name}/bin/python" for name in ("serve-cpu", "serve")]


@dataclass
class Outline:
    """Stands for an image of which only the size matters, so that thousands take no time."""

    width: int
    height: int
    mode: str = "RGB"
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> tuple[int, int]:
        return self.width, self.height

    def resize(self, size: tuple[int, int]) -> "Outline":
        if min(size) < 1:
            raise ValueError("height and width must be > 0")
        return Outline(*size)

    def copy(self) -> "Outline":
        return Outline(*self.size)


def noise(mode: str, width: int, height: int, seed: int) -> Image.Image:
    """The same pixels from the same seed in every environment."""
    bands = {"RGB": 3, "RGBA": 4, "CMYK": 4, "LA": 2, "I;16": 2}.get(mode, 1)
    raw = random.Random(seed).randbytes(width * height * bands)
    if mode == "1":
        return Image.frombytes("L", (width, height), raw).convert("1")
    if mode == "I;16":
        # 10 bits: close to the 16-bit maximum Pillow 11 wraps around in a resize, and 13 does not.
        raw = bytes(byte & 3 if index % 2 else byte for index, byte in enumerate(raw))
    image = Image.frombytes(mode, (width, height), raw)
    if mode == "P":
        image.putpalette(random.Random(seed + 1).randbytes(768))
    return image


def digest(image: Image.Image) -> list[Any]:
    return [image.mode, *image.size, hashlib.sha256(image.tobytes()).hexdigest()]


# Answers one JSON line with one: the bound of LLaMA-Factory itself, in its own environment.
SERVER = (
    """
import hashlib, json, random, sys
from dataclasses import dataclass, field
from typing import Any
from PIL import Image
from llamafactory.data.mm_plugin import Qwen2VLPlugin

"""
    + inspect.getsource(Outline)
    + inspect.getsource(noise)
    + inspect.getsource(digest)
    + """
plugin = Qwen2VLPlugin(image_token="<|image_pad|>", video_token=None, audio_token=None)

def answer(kind, args, max_pixels):
    if kind == "file":
        return digest(plugin._regularize_images(
            args, image_max_pixels=max_pixels, image_min_pixels=1024)["images"][0])
    image = Outline(*args) if kind == "outline" else noise(*args)
    try:
        # The default of image_min_pixels, in hparams/model_args.py.
        image = plugin._preprocess_image(image, image_max_pixels=max_pixels, image_min_pixels=1024)
    except ValueError:
        return None
    return [image.mode, *image.size] if kind == "outline" else digest(image)

out, sys.stdout = sys.stdout, sys.stderr
print("ready", file=out, flush=True)
for line in sys.stdin:
    print(json.dumps([answer(*question) for question in json.loads(line)]), file=out, flush=True)
"""
)


class LlamaFactory:
    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process

    def ask(self, questions: list[Any]) -> list[Any]:
        assert self.process.stdin
        assert self.process.stdout
        print(json.dumps(questions), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())


@pytest.fixture(scope="module")
def llama_factory() -> Iterator[LlamaFactory]:
    assert SFT_PYTHON.exists(), f"{SFT_PYTHON} is missing: make envs"
    with subprocess.Popen(
        [SFT_PYTHON, "-c", SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
    ) as process:
        assert process.stdout
        while (line := process.stdout.readline()) != "ready\n":
            assert line, "LLaMA-Factory did not start"
        yield LlamaFactory(process)
        assert process.stdin
        process.stdin.close()


def ours(kind: str, args: tuple[Any, ...], max_pixels: int) -> list[Any] | None:
    image: Any = Outline(*args) if kind == "outline" else noise(*args)
    try:
        image = bound(image, max_pixels)
    except MediaError as error:
        return None if error.reason == "too_large" else [str(error)]
    return [image.mode, *image.size] if kind == "outline" else digest(image)


def test_sizes_are_those_of_llama_factory(llama_factory: LlamaFactory) -> None:
    dice = random.Random(0)

    def side() -> int:
        return int(2 ** dice.uniform(0, 14))

    questions = [("outline", (side(), side()), MAX_PIXELS) for _ in range(5000)]
    questions += [("outline", (side(), side()), dice.randint(2048, 10**6)) for _ in range(2000)]
    expected = llama_factory.ask(questions)
    assert [ours(*question) for question in questions] == expected


sides = st.one_of(st.integers(1, 64), st.integers(1, 4000), st.integers(1, 2_000_000))


@settings(max_examples=500, deadline=None)
@given(width=sides, height=sides, max_pixels=st.sampled_from([1024, 16384, 262144, 589824]))
def test_any_size_is_that_of_llama_factory(
    llama_factory: LlamaFactory, width: int, height: int, max_pixels: int
) -> None:
    question = ("outline", (width, height), max_pixels)
    assert [ours(*question)] == llama_factory.ask([question])


MODES = ["RGB", "L", "RGBA", "LA", "P", "1", "CMYK", "I;16"]


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


def saved(path: Path, image: Image.Image, **options: Any) -> Path:
    image.save(path, **options)
    return path


# --- paths ----------------------------------------------------------------------------------------
def reason(call: Any, *args: Any) -> str:
    with pytest.raises(MediaError) as caught:
        call(*args)
    assert str(caught.value)
    return caught.value.reason


def test_resolve(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    inside = saved(root / "sub/a.png", noise("RGB", 30, 30, 0))
    outside = saved(tmp_path / "b.png", noise("RGB", 30, 30, 0))
    (root / "out.png").symlink_to(outside)
    (root / "in.png").symlink_to(inside)
    (root / "folder").symlink_to(tmp_path)
    (root / "loop").symlink_to(root / "loop")

    for path in ("sub/a.png", "sub/../sub/a.png", "in.png", "./sub//a.png"):
        assert resolve(path, root) == inside
    for path in (
        str(inside),
        "/etc/passwd",
        "../b.png",
        "sub/../../b.png",
        "out.png",
        "folder/b.png",
        "../rootless/x.png",
    ):
        assert reason(resolve, path, root) == "escapes"
    for path in ("nothing.png", "sub", "", "a\0b", "x" * 5000, "loop", "https://a.b/c.png"):
        assert reason(resolve, path, root) == "missing"


def test_root_may_itself_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    image = saved(tmp_path / "real/a.png", noise("RGB", 30, 30, 0))
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert resolve("a.png", tmp_path / "link") == image


@given(parts=st.lists(st.sampled_from(["..", ".", "a", "out", "b.png", "", "/"]), max_size=6))
def test_resolve_never_leaves_the_root(tmp_path_factory: Any, parts: list[str]) -> None:
    base = tmp_path_factory.getbasetemp() / "hypothesis"
    root = base / "root"
    if not root.exists():
        (root / "a").mkdir(parents=True)
        (base / "b.png").write_bytes(b"x")
        (root / "a/b.png").write_bytes(b"x")
        (root / "a/out").symlink_to(base)
    with contextlib.suppress(MediaError):
        assert resolve("/".join(parts), root).is_relative_to(root.resolve())


# --- broken files ---------------------------------------------------------------------------------
@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_load_takes_whole_files_and_refuses_cut_ones(tmp_path: Path, format_: str) -> None:
    path = saved(tmp_path / "a.img", noise("RGB", 64, 48, 0), format=format_)
    assert load_image(path).size == (64, 48)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert reason(load_image, path) == "corrupt"


def test_a_library_that_allows_truncated_images_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path / "a.jpg", noise("RGB", 256, 256, 0))
    path.write_bytes(path.read_bytes()[:9000])
    Image.open(path).verify()  # Pillow's own check lets it pass
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    assert reason(load_image, path) == "corrupt"


def test_load_reasons(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    assert reason(load_image, path) == "missing"
    assert reason(load_image, tmp_path) == "missing"
    path.write_bytes(b"")
    assert reason(load_image, path) == "empty"
    path.write_text("not an image")
    assert reason(load_image, path) == "not_an_image"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    assert reason(load_image, path) == "not_an_image"
    with pytest.raises(MediaError, match=r"a\.png"):
        load_image(path)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_damage_is_a_media_error_or_harmless(tmp_path_factory: Any, data: Any) -> None:
    format_ = data.draw(st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "TIFF"]))
    buffer = io.BytesIO()
    noise("RGB", 40, 30, 0).save(buffer, format_)
    damaged = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 5))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(damaged)
    with warnings.catch_warnings(), contextlib.suppress(MediaError):
        warnings.simplefilter("ignore")
        encoded(path, 262144, None)  # any other exception fails the test


def test_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A few kilobytes that would decode to 200 million pixels.
    path = saved(tmp_path / "bomb.png", Image.new("1", (20_000, 10_000)))
    assert path.stat().st_size < 50_000
    assert reason(load_image, path) == "too_large"
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # our limit holds without Pillow's
    assert reason(load_image, path) == "too_large"


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue")]
    path = saved(tmp_path / "a.gif", frames[0], save_all=True, append_images=frames[1:])
    assert bound(load_image(path)).getpixel((5, 5)) == (255, 0, 0)


# --- what travels ---------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("suffix", "mime"), [("jpg", "image/jpeg"), ("png", "image/png"), ("webp", "image/webp")]
)
def test_bytes_within_the_bound_travel_as_they_are(tmp_path: Path, suffix: str, mime: str) -> None:
    path = saved(tmp_path / f"a.{suffix}", noise("RGB", 200, 100, 0))
    assert encoded(path, 262144, tmp_path / "cache") == (path.read_bytes(), mime)
    assert list((tmp_path / "cache").glob("*.png")) == []


def rotated() -> Image.Exif:
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    return exif


# name -> image and how to save it
BOUNDED: dict[str, tuple[Image.Image, dict[str, Any]]] = {
    "large.jpg": (noise("RGB", 1000, 700, 0), {}),
    "small.png": (noise("RGB", 20, 100, 0), {}),
    "alpha.png": (noise("RGBA", 100, 100, 0), {}),
    "alpha.webp": (noise("RGBA", 100, 100, 0), {"lossless": True}),
    "grey_alpha.png": (noise("LA", 100, 100, 0), {}),
    "palette.png": (noise("P", 100, 100, 0), {}),
    "palette_alpha.png": (noise("P", 100, 100, 0), {"transparency": 3}),
    "colour_key.png": (Image.new("RGB", (100, 100), "red"), {"transparency": (255, 0, 0)}),
    "rotated.jpg": (noise("RGB", 200, 100, 0), {"exif": rotated()}),
    "cmyk.jpg": (noise("CMYK", 100, 100, 0), {}),
    "deep.png": (noise("I;16", 100, 100, 0), {}),
    "format.bmp": (noise("RGB", 100, 100, 0), {}),
    "format.gif": (noise("P", 100, 100, 0), {}),
}
UNCHANGED: dict[str, tuple[Image.Image, dict[str, Any]]] = {
    "colour.jpg": (noise("RGB", 300, 200, 0), {}),
    "grey.jpg": (noise("L", 300, 200, 0), {}),
    "colour.png": (noise("RGB", 300, 200, 0), {}),
    "colour.webp": (noise("RGB", 300, 200, 0), {}),
}


@pytest.mark.parametrize("name", BOUNDED)
def test_other_images_travel_bounded_and_without_loss(tmp_path: Path, name: str) -> None:
    image, options = BOUNDED[name]
    path = saved(tmp_path / name, image, **options)
    sent, mime = encoded(path, 262144, None)
    assert mime == "image/png"
    seen = Image.open(io.BytesIO(sent))
    expected = bound(load_image(path))
    assert (seen.mode, seen.size, seen.info) == ("RGB", expected.size, {})
    assert seen.tobytes() == expected.tobytes()
    assert not seen.getexif()
    assert not needs_bound(seen, 262144)


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


def test_vllm_and_llama_factory_see_the_same_pixels(
    tmp_path: Path, llama_factory: LlamaFactory
) -> None:
    python = next((path for path in SERVE_PYTHONS if path.exists()), None)
    assert python, f"{SERVE_PYTHONS[0]} is missing: make envs"
    sources, sent = [], []
    for name, (image, options) in (BOUNDED | UNCHANGED).items():
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


def test_too_thin_names_the_file(tmp_path: Path) -> None:
    path = saved(tmp_path / "thin.png", Image.new("1", (1_000_000, 1)))
    with pytest.raises(MediaError, match=r"thin\.png.*1000000 x 1") as caught:
        encoded(path, 262144, None)
    assert caught.value.reason == "too_large"


# --- cache ----------------------------------------------------------------------------------------
def test_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "a.png", noise("RGB", 800, 600, 0))
    cache = tmp_path / "below/cache"
    first = encoded(path, 262144, cache)
    (kept,) = cache.glob("*.png")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert kept.name == f"{digest}-262144.png"
    assert kept.read_bytes() == first[0]

    smaller, _ = encoded(path, 16384, cache)
    assert len(list(cache.glob("*.png"))) == 2
    assert len(smaller) < len(first[0])

    monkeypatch.setattr(sent, "bound", None)  # a second call does not bound again
    assert encoded(path, 262144, cache) == first
    monkeypatch.undo()

    saved(path, noise("RGB", 800, 600, 1))  # the key is the content, not the name
    assert encoded(path, 262144, cache) != first


def test_what_travels_as_it_is_is_decoded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path / "a.png", noise("RGB", 200, 100, 0))
    cache = tmp_path / "cache"
    first = encoded(path, 262144, cache)
    decoded = []
    decode = sent.decode_checked
    monkeypatch.setattr(sent, "decode_checked", lambda *a: decoded.append(a) or decode(*a))
    assert encoded(path, 262144, cache) == first
    assert decoded == []
    # Another bound is another question, and so is another content.
    assert encoded(path, 16384, cache) != first
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(MediaError, match="broken or cut short"):
        encoded(path, 262144, cache)


def test_a_jpeg_that_only_needs_a_check_shows_the_faults_of_a_full_decode(tmp_path: Path) -> None:
    draw = random.Random(0)
    good = saved(tmp_path / "good.jpg", noise("RGB", 160, 120, 0)).read_bytes()
    found = []
    for number in range(120):
        data = bytearray(good)
        if number % 3 == 0:
            data = data[: draw.randrange(len(data))]
        for _ in range(number % 3):
            data[draw.randrange(len(data))] = draw.randrange(256)
        path = tmp_path / f"{number}.jpg"
        path.write_bytes(data)
        reasons = []
        for read in (load_image, lambda path: encoded(path, 262144, None)):
            try:
                read(path)
                reasons.append("")
            except MediaError as error:
                reasons.append(error.reason)
        assert reasons[0] == reasons[1]
        found.append(reasons[0])
    assert "corrupt" in found
    assert "" in found


def test_a_file_too_large_to_be_an_image_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.png"
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(MediaError, match="268,435,457 bytes") as caught:
        encoded(path, 262144, None)
    assert caught.value.reason == "too_large"


@pytest.mark.parametrize("wrong", [b"no database", b""])
def test_what_is_wrong_with_the_notes_is_passed_over(tmp_path: Path, wrong: bytes) -> None:
    path = saved(tmp_path / "a.png", noise("RGB", 200, 100, 0))
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "seen.sqlite").write_bytes(wrong * 200)
    for _ in range(2):
        assert encoded(path, 262144, cache)[0] == path.read_bytes()
    (cache / "seen.sqlite").unlink()
    (cache / "seen.sqlite").mkdir()
    assert encoded(path, 262144, cache)[0] == path.read_bytes()


def test_many_threads_and_readers_share_their_notes(tmp_path: Path) -> None:
    paths = [saved(tmp_path / f"{n}.png", noise("RGB", 40, 40, n)) for n in range(600)]
    cache = tmp_path / "cache"
    with (
        MediaReader(262144, cache) as one,
        MediaReader(262144, cache) as other,
        ThreadPoolExecutor(8) as pool,
    ):
        sent = list(pool.map(lambda n: (one, other)[n % 2].read(paths[n]), range(600)))
    assert [data for _, data, _ in sent] == [path.read_bytes() for path in paths]
    with sqlite3.connect(cache / "seen.sqlite") as database:
        assert database.execute("SELECT count(*) FROM seen").fetchone() == (600,)


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "a.png", noise("RGB", 800, 600, 0))

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        encoded(path, 262144, tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["seen.sqlite"]


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
