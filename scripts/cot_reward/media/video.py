"""Videos as frames: evenly spaced pictures, written once below the media root.

Every later step shows these files as images, so that stages 1 to 3 and the evaluation see the same
pixels. PyAV decodes: it is kept up by the authors of its FFmpeg build, brings its codecs along, and
needs no torch, which torchcodec and the decoders of qwen-vl-utils do.
"""

import hashlib
import io
import os
import shutil
import tempfile
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path

import av
from PIL import Image

from cot_reward.media.images import MAX_PIXELS, bound
from cot_reward.media.paths import LFS_POINTER, MediaError, lfs_error

# By default so many frames of a video are shown, as the method does it.
FRAMES = 8
VIDEO_ENDINGS = (".mp4", ".webm", ".mkv", ".mov", ".avi", ".m4v", ".gif", ".mpg", ".mpeg", ".ts")
# What frames are of a file: raise it when the choice of the frames or their encoding changes.
_VERSION = 1
_JPEG_QUALITY = 95
# The share of the announced length that must be there.
_LEAST_SHARE = 0.95
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
        made = Path(tempfile.mkdtemp(prefix=".frames.", dir=place.parent))
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


def read_frames(video: Path, wanted: int = FRAMES) -> Iterator[Image.Image]:
    """`wanted` frames of a video, evenly spaced by their number, in RGB. Raises MediaError.

    Memory does not grow with the video: the first pass reads its time stamps, and the second one
    decodes from the key frame before each frame that is wanted.
    """
    try:
        with av.open(str(video)) as container:
            times, keys = _times(container)
        if not times:
            raise MediaError("no frame of a video in it; leave the row out", "corrupt")
        targets = [times[number] for number in frame_numbers(len(times), wanted)]
        yield from _decoded(video, targets, keys)
    except (av.FFmpegError, IndexError, ValueError) as error:
        # PyAV raises ValueError for a stream without a decoder.
        raise MediaError(
            f"not a video that can be decoded to its end ({error}); fetch the file again, or leave "
            "the row out",
            "corrupt",
        ) from None


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


def _times(container: "av.container.InputContainer") -> tuple[list[int], list[int]]:
    """The time stamps of all frames, and of the key frames, in order. Frames are not decoded."""
    if not container.streams.video:
        return [], []
    stream = container.streams.video[0]
    times, keys = [], []
    end = 0
    for packet in container.demux(stream):
        if packet.pts is None or not packet.size:
            continue
        times.append(packet.pts)
        end = max(end, packet.pts + (packet.duration or 0))
        if packet.is_keyframe:
            keys.append(packet.pts)
    if len(container.streams) == 1 and container.duration and stream.time_base:
        # A Matroska file that was cut can be read up to the cut.
        seconds, announced = float(end * stream.time_base), container.duration / av.time_base
        if seconds < _LEAST_SHARE * announced - 1 / (stream.average_rate or 1):
            raise MediaError(
                f"cut short: {seconds:.1f} of {announced:.1f} seconds are there; fetch the file "
                "again, or leave the row out",
                "corrupt",
            )
    return sorted(times), sorted(keys)


def _decoded(video: Path, targets: Sequence[int], keys: Sequence[int]) -> Iterator[Image.Image]:
    """The frames at these time stamps, which do not fall.

    Raises MediaError where the video ends before the last of them.
    """
    with av.open(str(video)) as container:
        stream = container.streams.video[0]
        frames = container.decode(stream)
        image: Image.Image | None = None
        now: int | None = None
        skipped = 0
        for target in targets:
            while now is None or now < target:
                if skipped >= _MOST_SKIPPED and now is not None:
                    skipped = 0
                    before = keys[max(bisect_right(keys, target) - 1, 0)] if keys else 0
                    if before > now:
                        container.seek(before, stream=stream)
                        frames = container.decode(stream)
                try:
                    frame = next(frames)
                except StopIteration:
                    raise MediaError(
                        "the video ends before its last frame; fetch the file again", "corrupt"
                    ) from None
                skipped += 1
                if frame.pts is None or frame.pts < target:
                    # Not yet turned into a picture: most frames are only passed by.
                    now = now if frame.pts is None else frame.pts
                    continue
                now, image = frame.pts, frame.to_image()
            assert image is not None
            yield image
