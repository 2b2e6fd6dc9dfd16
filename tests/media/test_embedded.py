"""Media that stand in rows: what is one, and the files that are written."""

import base64
import io
from pathlib import Path

import pytest
from cot_reward.media.embedded import embedded, write_medium
from cot_reward.media.images import load_image
from helpers.pictures import noise, reason_of
from helpers.videos import video
from PIL import Image


def data_of(kind: str, size: int = 40) -> bytes:
    buffer = io.BytesIO()
    noise("RGB", size, size, 1).save(buffer, kind)
    return buffer.getvalue()


PNG = data_of("PNG")


@pytest.mark.parametrize(
    "value",
    [
        PNG, bytearray(PNG), memoryview(PNG), {"bytes": PNG, "path": None},
        {"bytes": PNG, "path": "a.png"}, base64.b64encode(PNG).decode(),
        "data:image/png;base64," + base64.b64encode(PNG).decode(),
        "data:image/png;charset=utf-8;base64," + base64.b64encode(PNG).decode(),
        base64.encodebytes(PNG).decode(),
    ],
)  # fmt: skip
def test_a_medium_in_every_form_is_its_bytes(value: object) -> None:
    assert embedded(value) == PNG


@pytest.mark.parametrize(
    "value",
    ["a.png", "images/" + "a" * 300 + ".png", {"bytes": None, "path": "a.png"}, None, 3, ["a"],
     "a caption of many words " * 20, "https://example.org/a.png"],
)  # fmt: skip
def test_paths_and_texts_are_no_media(value: object) -> None:
    assert embedded(value) is None


@pytest.mark.parametrize(
    ("kind", "ending"), [("PNG", "png"), ("JPEG", "jpg"), ("WEBP", "webp"), ("GIF", "gif")]
)
def test_the_file_is_named_by_its_content(tmp_path: Path, kind: str, ending: str) -> None:
    data = data_of(kind)
    file = write_medium(data, tmp_path)
    assert (file.suffix, file.read_bytes()) == (f".{ending}", data)
    before = file.stat().st_mtime_ns
    assert write_medium(data, tmp_path) == file
    assert file.stat().st_mtime_ns == before
    assert load_image(file).size == (40, 40)


def test_videos_are_known_by_their_first_bytes(tmp_path: Path) -> None:
    for name, ending in (("a.mp4", "mp4"), ("a.mkv", "webm"), ("a.webm", "webm"), ("a.avi", "avi")):
        codec = "libvpx-vp9" if name == "a.webm" else "mpeg4"
        data = video(tmp_path / name, range(5), codec).read_bytes()
        assert write_medium(data, tmp_path / "out").suffix == f".{ending}"


def test_what_is_no_medium_is_refused_and_not_kept(tmp_path: Path) -> None:
    assert reason_of(write_medium, b"", tmp_path) == "empty"
    assert reason_of(write_medium, b"hello " * 100, tmp_path) == "not_an_image"
    assert reason_of(write_medium, data_of("PNG", 200)[:-2000], tmp_path) == "corrupt"
    assert reason_of(write_medium, data_of("JPEG", 200)[:-2000], tmp_path) == "corrupt"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_no_text_before_the_picture_is_taken_for_its_form(tmp_path: Path) -> None:
    # A PostScript file would start another program in some readers.
    assert reason_of(write_medium, b"%!PS-Adobe-3.0 EPSF-3.0\n" * 20, tmp_path) == "not_an_image"
    Image.new("RGB", (40, 40)).save(tmp_path / "a.ico")
    data = (tmp_path / "a.ico").read_bytes()
    assert reason_of(write_medium, data, tmp_path / "out") == "not_an_image"


def test_a_file_that_is_there_has_been_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill between writing and decoding would leave a broken file for good."""
    import cot_reward.media.embedded as module

    written = []
    monkeypatch.setattr(module, "write_cache_file", lambda *args: written.append(args))
    assert reason_of(write_medium, data_of("PNG", 200)[:-2000], tmp_path) == "corrupt"
    assert written == []


def test_pictures_in_the_form_of_mp4_are_no_videos(tmp_path: Path) -> None:
    for brand in (b"heic", b"mif1"):
        data = b"\0\0\0\x18ftyp" + brand + b"\0" * 200
        assert reason_of(write_medium, data, tmp_path) == "not_an_image"
