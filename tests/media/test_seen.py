"""What was found out about files' contents is found again, and no fault of the database matters."""

import sqlite3
from pathlib import Path

import pytest
from cot_reward.media import images
from cot_reward.media.images import bound, inspect_image, load_image
from cot_reward.media.paths import MediaError
from cot_reward.media.seen import SeenFiles
from helpers.pictures import noise, saved


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were decoded, in order."""
    paths: list[Path] = []
    decode = images.decode_checked

    def counted(source: bytes, path: Path, max_pixels: int) -> object:
        paths.append(path)
        return decode(source, path, max_pixels)

    monkeypatch.setattr(images, "decode_checked", counted)
    return paths


def test_notes_are_kept_and_the_first_one_stays(tmp_path: Path) -> None:
    path = tmp_path / "below/seen.sqlite"
    with SeenFiles(path) as seen:
        assert seen.get(b"a") == ""
        seen.add(b"a", "one")
        assert seen.get(b"a") == "one"
    with SeenFiles(path) as first, SeenFiles(path) as second:
        assert (first.get(b"a"), first.get(b"b")) == ("one", "")
        second.add(b"a", "two")
    with SeenFiles(path) as seen:
        assert seen.get(b"a") == "one"


def test_a_database_with_the_columns_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    path = tmp_path / "seen.sqlite"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE seen (key BLOB PRIMARY KEY, mime TEXT) WITHOUT ROWID")
        database.execute("INSERT INTO seen VALUES (?, ?)", (b"a", "image/png"))
    with SeenFiles(path) as seen:
        assert seen.get(b"a") == "image/png"
        seen.add(b"b", "image/webp")
    with SeenFiles(path) as seen:
        assert seen.get(b"b") == "image/webp"


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.gif"])
@pytest.mark.parametrize("size", [(64, 64), (1000, 700), (10, 5000)])
def test_an_image_is_decoded_once_and_its_size_stays(
    tmp_path: Path, decoded: list[Path], name: str, size: tuple[int, int]
) -> None:
    path = saved(tmp_path / name, noise("RGB", *size, 0))
    for pixels in (262144, 262144, 100_000, 4096):
        with SeenFiles(tmp_path / "seen.sqlite") as seen:
            digest, shown = inspect_image(path, pixels, seen)
        assert shown == bound(load_image(path), pixels).size
        assert digest == inspect_image(path, pixels)[0]
    assert len(decoded) == 1 + 4  # once, and by each of the calls without a database


def test_a_changed_file_is_decoded_again_and_a_moved_one_is_not(
    tmp_path: Path, decoded: list[Path]
) -> None:
    path = saved(tmp_path / "a.png", noise("RGB", 80, 60, 0))
    with SeenFiles(tmp_path / "seen.sqlite") as seen:
        first = inspect_image(path, seen=seen)
        moved = path.rename(tmp_path / "b.png")
        assert inspect_image(moved, seen=seen) == first
        # The same size and time, another content.
        times = moved.stat()
        data = bytearray(moved.read_bytes())
        data[len(data) // 2] ^= 255
        moved.write_bytes(data)
        assert moved.stat().st_size == times.st_size
        with pytest.raises(MediaError):
            inspect_image(moved, seen=seen)
    assert decoded == [path, moved]


def test_a_bad_image_is_bad_each_time(tmp_path: Path, decoded: list[Path]) -> None:
    path = saved(tmp_path / "a.png", noise("RGB", 80, 60, 0))
    path.write_bytes(path.read_bytes()[:-300])
    for _ in range(2):
        with SeenFiles(tmp_path / "seen.sqlite") as seen, pytest.raises(MediaError, match="cut sh"):
            inspect_image(path, seen=seen)
    assert len(decoded) == 2


@pytest.mark.parametrize("note", ["", "0x60", "80", "80x60x3", "-1x60", "80x\x00", None, 7])
def test_a_damaged_note_is_not_believed(
    tmp_path: Path, decoded: list[Path], note: str | int | None
) -> None:
    path = saved(tmp_path / "a.png", noise("RGB", 80, 60, 0))
    with SeenFiles(tmp_path / "seen.sqlite") as seen:
        inspect_image(path, seen=seen)
    with sqlite3.connect(tmp_path / "seen.sqlite") as database:
        database.execute("UPDATE seen SET note = ?", (note,))
    with SeenFiles(tmp_path / "seen.sqlite") as seen:
        assert inspect_image(path, seen=seen)[1] == (80, 60)
    assert len(decoded) == 2


def test_what_another_pillow_found_sound_is_decoded_again(
    tmp_path: Path, decoded: list[Path]
) -> None:
    path = saved(tmp_path / "a.png", noise("RGB", 80, 60, 0))
    with SeenFiles(tmp_path / "seen.sqlite") as seen:
        inspect_image(path, seen=seen)
    with sqlite3.connect(tmp_path / "seen.sqlite") as database:
        ((key,),) = database.execute("SELECT key FROM seen").fetchall()
        database.execute("UPDATE seen SET key = ?", (key[:32] + b"1 pillow 0.0.1",))
    with SeenFiles(tmp_path / "seen.sqlite") as seen:
        inspect_image(path, seen=seen)
    assert len(decoded) == 2


@pytest.mark.parametrize("damage", ["text", "empty", "folder", "cut", "other table", "no folder"])
def test_faults_of_the_database_only_cost_time(
    tmp_path: Path, decoded: list[Path], damage: str
) -> None:
    pictures = [saved(tmp_path / f"{n}.png", noise("RGB", 40, 40, n)) for n in range(300)]
    path = tmp_path / "cache/seen.sqlite"
    with SeenFiles(path) as seen:
        first = [inspect_image(picture, seen=seen) for picture in pictures]
    if damage == "text":
        path.write_bytes(b"no database " * 1000)
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:5000])
    elif damage == "folder":
        path.unlink()
        path.mkdir()
    elif damage == "other table":
        path.unlink()
        with sqlite3.connect(path) as database:
            database.execute("CREATE TABLE seen (name TEXT)")
    else:
        path.unlink()
        path.parent.rmdir()
        path.parent.write_text("a file")
    with SeenFiles(path) as seen:
        assert [inspect_image(picture, seen=seen) for picture in pictures] == first
