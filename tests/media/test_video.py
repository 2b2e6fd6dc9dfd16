"""Frames of videos: which, of what forms, and what becomes of files that are no videos."""

import os
import struct
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest
from cot_reward.media.images import load_image, needs_bound
from cot_reward.media.paths import LFS_POINTER, MediaError
from cot_reward.media.video import frame_numbers, frames_of, read_frames, remove_unfinished
from helpers.pictures import reason_of
from helpers.videos import SIZE, shade, shade_at, video
from hypothesis import given
from hypothesis import strategies as st

# Encoding changes a shade by a little.
NEAR = 4


def shades(path: Path, wanted: int = 8) -> list[int]:
    return [shade(image) for image in read_frames(path, wanted)]


@given(st.integers(1, 10_000), st.integers(2, 64))
def test_frames_are_evenly_spaced_with_the_first_and_the_last(count: int, wanted: int) -> None:
    numbers = frame_numbers(count, wanted)
    assert (len(numbers), numbers[0], numbers[-1]) == (wanted, 0, count - 1)
    gaps = {after - before for before, after in pairwise(numbers)}
    assert max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.mp4", "mpeg4"), ("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.mov", "libx264"),
        ("a.webm", "libvpx-vp9"), ("a.avi", "mpeg4"), ("a.mp4", "libx265"), ("a.ts", "libx264"),
        ("a.mpg", "mpeg2video"),
    ],
)  # fmt: skip
def test_the_right_frames_of_every_form(tmp_path: Path, name: str, codec: str) -> None:
    path = video(tmp_path / name, range(0, 250, 2), codec)
    wanted = [2 * number for number in frame_numbers(125, 8)]
    assert shades(path) == pytest.approx(wanted, abs=NEAR)


def test_frames_count_by_number_and_not_by_time(tmp_path: Path) -> None:
    durations = [1, 5, 1, 40, 1, 1, 1, 100, *[2] * 12]
    path = video(tmp_path / "a.mp4", range(0, 200, 10), durations=durations)
    wanted = [10 * number for number in frame_numbers(20, 8)]
    assert shades(path) == pytest.approx(wanted, abs=NEAR)


def test_a_short_video_shows_its_frames_several_times(tmp_path: Path) -> None:
    assert shades(video(tmp_path / "one.mp4", [99])) == pytest.approx([99] * 8, abs=NEAR)
    two = shades(video(tmp_path / "two.mp4", [20, 220]))
    assert two == pytest.approx([20] * 4 + [220] * 4, abs=NEAR)


def test_of_a_long_video_few_frames_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import av

    path = video(tmp_path / "long.mp4", (number % 250 for number in range(6000)), key_every=50)
    decoded = 0

    class Counting:
        """A container that counts the frames which are decoded."""

        def __init__(self, container):
            self._container = container

        def __getattr__(self, name):
            return getattr(self._container, name)

        def __enter__(self):
            return self

        def __exit__(self, *exception):
            self._container.close()

        def decode(self, stream):
            nonlocal decoded
            for frame in self._container.decode(stream):
                decoded += 1
                yield frame

    opened = av.open
    monkeypatch.setattr(av, "open", lambda *args, **other: Counting(opened(*args, **other)))
    wanted = [number % 250 for number in frame_numbers(6000, 8)]
    assert shades(path) == pytest.approx(wanted, abs=NEAR)
    assert decoded < 1000


def test_frames_are_files_of_the_content_and_made_once(tmp_path: Path) -> None:
    path = video(tmp_path / "a.mp4", range(0, 250, 10))
    files = frames_of(path, tmp_path / "frames")
    assert len(files) == 8
    assert [shade(load_image(file)) for file in files] == pytest.approx(
        [10 * number for number in frame_numbers(25, 8)], abs=NEAR
    )
    # Every reader takes the file as it is.
    assert not any(needs_bound(load_image(file)) for file in files)
    before = {file: file.stat().st_mtime_ns for file in files}
    same = path.with_name("other name.mp4")
    path.rename(same)
    assert frames_of(same, tmp_path / "frames") == files
    assert {file: file.stat().st_mtime_ns for file in files} == before
    assert frames_of(same, tmp_path / "frames", 4) != files[:4]
    assert frames_of(same, tmp_path / "frames", 8, 2000) != files
    small = frames_of(same, tmp_path / "frames", 8, 2000)[0]
    assert load_image(small).size < (64, 48)


def test_threads_that_make_the_same_frames_agree(tmp_path: Path) -> None:
    path = video(tmp_path / "a.mp4", range(0, 250, 10))
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: frames_of(path, tmp_path / "frames"), range(16)))
    assert all(files == made[0] for files in made)
    assert all(file.is_file() for file in made[0])
    # Nothing is left of those that were later.
    assert len(list(made[0][0].parents[1].iterdir())) == 1


@pytest.mark.parametrize(
    ("name", "codec", "audio", "options"),
    [
        ("a.mkv", "libx264", "aac", {}), ("a.webm", "libvpx-vp9", "libopus", {}),
        ("a.mp4", "libx264", "aac", {"movflags": "faststart"}), ("a.mp4", "libx264", "aac", {}),
    ],
)  # fmt: skip
def test_a_video_with_sound_is_known_to_be_cut(
    tmp_path: Path, name: str, codec: str, audio: str, options: dict[str, str]
) -> None:
    path = video(tmp_path / name, range(0, 250, 2), codec, audio=audio, **options)
    assert len(shades(path)) == 8
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(MediaError, match=r"cut short|can be decoded|no stream of a video"):
        shades(path)


def test_a_long_stream_without_an_index_is_decoded_to_its_end(tmp_path: Path) -> None:
    path = video(tmp_path / "long.ts", (number % 250 for number in range(600)))
    assert shades(path) == pytest.approx([n % 250 for n in frame_numbers(600, 8)], abs=NEAR)


def test_a_title_in_another_encoding_does_not_matter(tmp_path: Path) -> None:
    path = video(tmp_path / "a.mkv", range(0, 90, 10), metadata={"title": "XXXXXX"})
    path.write_bytes(path.read_bytes().replace(b"XXXXXX", b"\xe9\xe8\xff\xfe\xe0\xfc"))
    assert len(shades(path)) == 8


@pytest.mark.parametrize(
    "text",
    ["ffconcat version 1.0\nfile other.ts\n", "#EXTM3U\n#EXTINF:1\nother.ts\n#EXT-X-ENDLIST\n"],
)
def test_a_list_of_other_files_is_no_video(tmp_path: Path, text: str) -> None:
    video(tmp_path / "other.ts", range(20))
    (tmp_path / "a.mp4").write_text(text)
    assert reason_of(frames_of, tmp_path / "a.mp4", tmp_path / "frames") == "corrupt"


def test_broken_files_are_named_and_leave_nothing(tmp_path: Path) -> None:
    whole = video(tmp_path / "a.mkv", range(0, 250, 2)).read_bytes()
    broken = {
        "empty.mp4": (b"", "empty"),
        "text.mp4": (b"hello " * 100, "corrupt"),
        "lfs.mp4": (LFS_POINTER + b"v1", "lfs_pointer"),
        "half.mkv": (whole[: len(whole) // 2], "corrupt"),
        "tail.mkv": (whole[:-500], "corrupt"),
        "cut.mp4": (video(tmp_path / "a.mp4", range(60)).read_bytes()[:-200], "corrupt"),
    }
    for name, (data, reason) in broken.items():
        (tmp_path / name).write_bytes(data)
        assert reason_of(frames_of, tmp_path / name, tmp_path / "frames") == reason, name
    assert reason_of(frames_of, tmp_path / "gone.mp4", tmp_path / "frames") == "missing"
    with pytest.raises(MediaError, match=r"half.mkv: cut short: .* of 5.0 seconds are there"):
        frames_of(tmp_path / "half.mkv", tmp_path / "frames")
    assert [path for path in (tmp_path / "frames").rglob("*") if path.is_file()] == []
    assert list((tmp_path / "frames").rglob(".frames.*")) == []


@pytest.mark.parametrize(
    ("matrix", "corner"),
    [
        # The matrix of the track as telephones write it: a picture held upright, upside down, ...
        ((0, 1, -1, 0), (True, False)),
        ((-1, 0, 0, -1), (True, True)),
        ((0, -1, 1, 0), (False, True)),
        ((1, 0, 0, 1), (False, False)),
    ],
)
def test_frames_are_turned_as_the_file_says(
    tmp_path: Path, matrix: tuple[int, ...], corner: tuple[bool, bool]
) -> None:
    """`corner`: whether the white corner, the upper left one as stored, is right, and below."""
    path = video(tmp_path / "plain.mp4", [9] * 30, key_every=4, corner=250)
    a, b, c, d = matrix
    contents = path.read_bytes()
    at = contents.index(b"tkhd") + 44
    turned = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    path.write_bytes(contents[:at] + turned + contents[at + 36 :])
    frames = list(read_frames(path, 3))
    assert len(frames) == 3
    for frame in frames:
        width, height = frame.size
        assert frame.size == (SIZE if not b else SIZE[::-1])
        white = {
            (right, below)
            for right in (False, True)
            for below in (False, True)
            if shade_at(frame, (width - 4) * right + 2, (height - 4) * below + 2) > 200
        }
        assert white == {corner}


def test_leftovers_of_killed_processes_go_after_a_day(tmp_path: Path) -> None:
    for name in ("old", "new"):
        (tmp_path / f"ab/.frames.{name}").mkdir(parents=True)
        (tmp_path / f"ab/.frames.{name}/000.jpg").write_bytes(b"x")
    (tmp_path / "ab/whole").mkdir()
    os.utime(tmp_path / "ab/.frames.old", (1, 1))
    remove_unfinished(tmp_path)
    assert sorted(found.name for found in (tmp_path / "ab").iterdir()) == [".frames.new", "whole"]
