"""Videos as frames: evenly spaced pictures, written once below the media root.

Every later step shows these files as images, so that stages 1 to 3 and the evaluation see the same
pixels. PyAV decodes: it is kept up by the authors of its FFmpeg build, brings its codecs along, and
needs no torch, which torchcodec and the decoders of qwen-vl-utils do.
"""

import contextlib
import hashlib
import io
import os
import shutil
import tempfile
import time
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import av
from PIL import Image

from cot_reward.media.images import MAX_PIXELS, bound
from cot_reward.media.paths import LFS_POINTER, MediaError, lfs_error

# By default so many frames of a video are shown, as the method does it.
FRAMES = 8
VIDEO_ENDINGS = (".mp4", ".webm", ".mkv", ".mov", ".avi", ".m4v", ".mpg", ".mpeg", ".ts")
# What frames are of a file: raise it when the choice of the frames or their encoding changes.
_VERSION = 2
_JPEG_QUALITY = 95
_UNFINISHED = ".frames."
_SECONDS_OF_A_DAY = 86_400
# The share of the announced length that must be there.
_LEAST_SHARE = 0.95
# The containers of VIDEO_ENDINGS, as FFmpeg names what reads them.
_DEMUXERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif,mpeg,mpegts,mpegvideo"
# Frames that are decoded on the way to the next one, before a jump to its key frame is tried.
_MOST_SKIPPED = 64


def frame_numbers(count: int, wanted: int) -> list[int]:
    """Which of `count` frames are shown: `wanted`, evenly spaced, the first and the last included.

    Of a shorter video some frames are shown several times.
    """
    if wanted == 1:
        return [0]
    return [round(number * (count - 1) / (wanted - 1)) for number in range(wanted)]


def frames_of(
    video: Path, folder: Path, wanted: int = FRAMES, max_pixels: int = MAX_PIXELS
) -> list[Path]:
    """The files of a video's frames below `folder`, which are made unless they are there.

    A frame is a JPEG of at most `max_pixels`. The frames are found again by the video's content,
    whatever its name. Raises MediaError for a file that is no video, and for one that cannot be
    decoded to its end; OSError when the frames cannot be written.
    """
    digest = _digest(video)
    place = folder / digest[:2] / f"{digest[:40]}-{wanted}-{max_pixels}-v{_VERSION}"
    files = [place / f"{number:03}.jpg" for number in range(wanted)]
    if not place.is_dir():
        place.parent.mkdir(parents=True, exist_ok=True)
        # The folder takes its name when all of its frames are in it.
        made = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=place.parent))
        try:
            for file, image in zip(files, read_frames(video, wanted), strict=True):
                buffer = io.BytesIO()
                bound(image, max_pixels).save(buffer, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
                (made / file.name).write_bytes(buffer.getvalue())
            made.chmod(0o755)
            try:
                made.rename(place)
            except OSError:
                # Another process may have been faster.
                if not place.is_dir():
                    raise
        except MediaError as error:
            raise MediaError(f"{video}: {error}", error.reason) from None
        finally:
            shutil.rmtree(made, ignore_errors=True)
    return files


def remove_unfinished(folder: Path) -> None:
    """Remove what processes that were killed have left in a folder of frames, a day ago or more."""
    for made in folder.glob(f"*/{_UNFINISHED}*"):
        with contextlib.suppress(OSError):
            if time.time() - made.stat().st_mtime > _SECONDS_OF_A_DAY:
                shutil.rmtree(made, ignore_errors=True)


def read_frames(video: Path, wanted: int = FRAMES) -> Iterator[Image.Image]:
    """`wanted` frames of a video, evenly spaced by their number, in RGB. Raises MediaError.

    Memory does not grow with the video. Where every frame has a time stamp of its own, the first
    pass reads these, and the second decodes from the key frame before each frame that is wanted.
    Otherwise, and where a jump does not meet its frame, all frames are decoded and counted.
    """
    try:
        with _opened(video) as (container, stream):
            times, keys = _times(container, stream)
        images = _at_times(video, times, keys, wanted) if times else None
        yield from images or _by_number(video, wanted)
    except (av.FFmpegError, IndexError, ValueError) as error:
        # PyAV raises ValueError for a stream without a decoder.
        raise MediaError(
            f"not a video that can be decoded to its end ({error}); fetch the file again, or leave "
            "the row out",
            "corrupt",
        ) from None


@contextlib.contextmanager
def _opened(video: Path) -> Iterator[tuple[Any, Any]]:
    """The container and its video stream. Raises MediaError for a file without one."""
    with av.open(
        # A playlist would have other files read. Texts in a file may be of any encoding.
        str(video), options={"format_whitelist": _DEMUXERS}, metadata_errors="replace",
    ) as container:  # fmt: skip
        # A cover picture is a stream, too.
        stream = container.streams.best("video")
        if stream is None:
            raise MediaError("no stream of a video in it; leave the row out", "corrupt")
        yield container, stream


def _digest(video: Path) -> str:
    try:
        with video.open("rb") as file:
            if file.read(len(LFS_POINTER)) == LFS_POINTER:
                raise lfs_error(video)
            if not os.fstat(file.fileno()).st_size:
                raise MediaError(f"{video}: empty (0 bytes); fetch the file again", "empty")
            file.seek(0)
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise MediaError(f"{video}: cannot be read ({error.strerror})", "missing") from None


def _times(container: Any, stream: Any) -> tuple[list[int], list[int]]:
    """The time stamps of all frames, and of the key frames, in order. Frames are not decoded.

    Two empty lists when a frame has none, or two have the same. Raises MediaError for a file that
    was cut: some forms can be read up to the cut.
    """
    times, keys, has_all = [], [], True
    # Of each stream the seconds up to which it is there.
    ends: dict[int, float] = {}
    for packet in container.demux():
        if not packet.size or packet.stream.type not in ("video", "audio"):
            continue
        at = packet.dts if packet.pts is None else packet.pts
        if at is not None and packet.time_base:
            end = float((at + (packet.duration or 0)) * packet.time_base)
            ends[packet.stream.index] = max(ends.get(packet.stream.index, 0.0), end)
        if packet.stream.index != stream.index:
            continue
        has_all &= packet.pts is not None
        if packet.pts is not None:
            times.append(packet.pts)
            if packet.is_keyframe:
                keys.append(packet.pts)
    frame = 1 / float(stream.average_rate or 1)
    announced = [(max(ends.values(), default=0.0), (container.duration or 0) / av.time_base)]
    if stream.duration and stream.time_base:
        announced.append((ends.get(stream.index, 0.0), float(stream.duration * stream.time_base)))
    start = (container.start_time or 0) / av.time_base
    for there, seconds in announced:
        if there - max(start, 0.0) < _LEAST_SHARE * seconds - frame:
            raise MediaError(
                f"cut short: {there:.1f} of {seconds:.1f} seconds are there; fetch the file again, "
                "or leave the row out",
                "corrupt",
            )
    if not has_all or len(set(times)) < len(times):
        return [], []
    return sorted(times), sorted(keys)


def _at_times(
    video: Path, times: Sequence[int], keys: Sequence[int], wanted: int
) -> list[Image.Image] | None:
    """The wanted frames by their time stamps; None when one of them is not met."""
    targets = [times[number] for number in frame_numbers(len(times), wanted)]
    images: dict[int, Image.Image] = {}
    with _opened(video) as (container, stream):
        frames = container.decode(stream)
        now, skipped = times[0] - 1, 0
        for target in targets:
            while now < target:
                if skipped >= _MOST_SKIPPED:
                    skipped = 0
                    before = keys[max(bisect_right(keys, target) - 1, 0)] if keys else now
                    if before > now:
                        container.seek(before, stream=stream)
                        frames = container.decode(stream)
                frame = next(frames, None)
                if frame is None or frame.pts is None or frame.pts > target:
                    return None
                skipped += 1
                now = frame.pts
                if now == target:
                    # Most frames are only passed by, and never become pictures.
                    images[target] = _upright(frame)
    return [images[target] for target in targets]


def _by_number(video: Path, wanted: int) -> Iterator[Image.Image]:
    """The wanted frames by their number, all frames decoded twice."""
    with _opened(video) as (container, stream):
        count = sum(1 for _ in container.decode(stream))
    if not count:
        raise MediaError("no frame of a video in it; leave the row out", "corrupt")
    numbers = frame_numbers(count, wanted)
    with _opened(video) as (container, stream):
        for number, frame in enumerate(container.decode(stream)):
            for _ in range(numbers.count(number)):
                yield _upright(frame)


def _upright(frame: Any) -> Image.Image:
    """A frame as players show it: telephones write how their video must be turned."""
    # In degrees, against the clock; only quarters are turned without a gap in the corners.
    turn = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180,
            270: Image.Transpose.ROTATE_270}.get(frame.rotation % 360)  # fmt: skip
    image: Image.Image = frame.to_image()
    return image.transpose(turn) if turn else image
