"""Videos of grey frames, whose shade tells which frame is seen."""

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
from PIL import Image

SIZE = (64, 48)


def video(
    path: Path,
    shades: Iterable[int],
    codec: str = "libx264",
    durations: Sequence[int] = (),
    rate: int = 25,
    key_every: int = 12,
) -> Path:
    """A video with one frame for each shade. `durations`: of the frames, in units of 1/rate s."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height = SIZE
        stream.pix_fmt, stream.gop_size = "yuv420p", key_every
        time = 0
        for number, shade in enumerate(shades):
            frame = av.VideoFrame.from_image(Image.new("RGB", SIZE, (shade,) * 3))
            frame.pts, frame.time_base = time, Fraction(1, rate)
            time += durations[number] if durations else 1
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def shade(image: Image.Image) -> int:
    found = image.convert("RGB").getpixel((SIZE[0] // 2, SIZE[1] // 2))
    assert isinstance(found, tuple)
    return int(found[0])
