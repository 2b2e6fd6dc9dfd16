"""What is sent of an image, broken files, and the cache."""

import contextlib
import hashlib
import io
import os
import random
import sqlite3
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cot_reward.media import sent
from cot_reward.media.images import (
    MAX_BYTES,
    bound,
    load_image,
    needs_bound,
)
from cot_reward.media.paths import ImageRoots, MediaError
from cot_reward.media.sent import MediaReader, url_reader
from helpers.pictures import bounded_pictures, encoded, noise, saved
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image


# --- what is sent ---------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("suffix", "mime"), [("jpg", "image/jpeg"), ("png", "image/png"), ("webp", "image/webp")]
)
def test_files_within_the_bound_are_sent_unchanged(tmp_path: Path, suffix: str, mime: str) -> None:
    path = saved(tmp_path / f"a.{suffix}", noise("RGB", 200, 100, 0))
    assert encoded(path, 262144, tmp_path / "cache") == (path.read_bytes(), mime)
    assert list((tmp_path / "cache").glob("*.png")) == []


BOUNDED = bounded_pictures()


@pytest.mark.parametrize("name", BOUNDED)
def test_other_images_are_sent_bounded_and_without_loss(tmp_path: Path, name: str) -> None:
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


def test_a_server_reads_files_below_the_media_root_only(tmp_path: Path) -> None:
    """A snapshot of the hub's cache has its contents beside it, where the server may not read."""
    snapshot = tmp_path / "datasets--someone--pairs/snapshots" / ("0" * 40)
    blobs = snapshot.parent.parent / "blobs"
    for folder in (snapshot, blobs):
        folder.mkdir(parents=True)
    saved(blobs / ("c" * 64), noise("RGB", 60, 60, 0), format="PNG")
    (snapshot / "link.png").symlink_to(f"../../blobs/{'c' * 64}")
    plain = saved(snapshot / "plain.png", noise("RGB", 60, 60, 1))
    large = saved(snapshot / "large.png", noise("RGB", 800, 700, 1))
    roots = ImageRoots(snapshot, [])
    with MediaReader(262144, snapshot / ".cache") as reader:
        as_file, inline = (url_reader(reader, roots, form) for form in ("file", "inline"))
        assert b"".join(as_file("plain.png")) == f'"{plain.as_uri()}"'.encode()
        assert b"".join(as_file(large.name)).startswith(f'"{snapshot.as_uri()}/.cache/'.encode())
        assert list(as_file("link.png")) == list(inline("link.png"))
        assert b"".join(inline("link.png")).startswith(b'"data:image/png;base64,')


# --- broken files ---------------------------------------------------------------------------------
def test_too_thin_names_the_file(tmp_path: Path) -> None:
    path = saved(tmp_path / "thin.png", Image.new("1", (1_000_000, 1)))
    with pytest.raises(MediaError, match=r"thin\.png.*1000000 x 1") as caught:
        encoded(path, 262144, None)
    assert caught.value.reason == "too_large"


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


def test_an_unchanged_file_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "a.png", noise("RGB", 200, 100, 0))
    cache = tmp_path / "cache"
    first = encoded(path, 262144, cache)
    decoded = []
    decode = sent.decode_checked
    monkeypatch.setattr(sent, "decode_checked", lambda *a: decoded.append(a) or decode(*a))
    assert encoded(path, 262144, cache) == first
    assert decoded == []
    # Another bound has another entry, and so has another content.
    assert encoded(path, 16384, cache) != first
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(MediaError, match="broken or cut short"):
        encoded(path, 262144, cache)


def test_a_file_too_large_to_be_an_image_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.png"
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(MediaError, match="268,435,457 bytes") as caught:
        encoded(path, 262144, None)
    assert caught.value.reason == "too_large"


@pytest.mark.parametrize("wrong", [b"no database", b""])
def test_faults_of_the_database_are_ignored(tmp_path: Path, wrong: bytes) -> None:
    path = saved(tmp_path / "a.png", noise("RGB", 200, 100, 0))
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "seen.sqlite").write_bytes(wrong * 200)
    for _ in range(2):
        assert encoded(path, 262144, cache)[0] == path.read_bytes()
    (cache / "seen.sqlite").unlink()
    (cache / "seen.sqlite").mkdir()
    assert encoded(path, 262144, cache)[0] == path.read_bytes()


def test_threads_and_readers_share_the_database(tmp_path: Path) -> None:
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
