"""Videos of grey frames, whose shade tells which frame is seen."""

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

SIZE = (64, 48)


def video(
    path: Path,
    shades: Iterable[int],
    codec: str = "libx264",
    durations: Sequence[int] = (),
    rate: int = 25,
    key_every: int = 12,
    audio: str = "",
    metadata: dict[str, str] | None = None,
    corner: int | None = None,
    **options: str,
) -> Path:
    """A video with one frame for each shade. `durations`: of the frames, in units of 1/rate s.

    `audio` is a codec for a silent track of the same length, `corner` the shade of the upper left
    quarter, `options` are the container's.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=options) as container:
        container.metadata.update(metadata or {})
        stream = container.add_stream(codec, rate=rate)
        sound = container.add_stream(audio, rate=48_000) if audio else None
        stream.width, stream.height = SIZE
        stream.pix_fmt, stream.gop_size = "yuv420p", key_every
        time = 0
        for number, shade in enumerate(shades):
            image = Image.new("RGB", SIZE, (shade,) * 3)
            if corner is not None:
                image.paste((corner,) * 3, (0, 0, SIZE[0] // 2, SIZE[1] // 2))
            frame = av.VideoFrame.from_image(image)
            frame.pts, frame.time_base = time, Fraction(1, rate)
            time += durations[number] if durations else 1
            container.mux(stream.encode(frame))
            if sound:
                samples = 48_000 // rate
                silence = av.AudioFrame.from_ndarray(
                    np.zeros((1, samples), dtype=np.float32), format="fltp", layout="mono"
                )
                silence.sample_rate, silence.pts = 48_000, number * samples
                silence.time_base = Fraction(1, 48_000)
                container.mux(sound.encode(silence))
        container.mux(stream.encode())
        if sound:
            container.mux(sound.encode())
    return path


def shade(image: Image.Image) -> int:
    return shade_at(image, SIZE[0] // 2, SIZE[1] // 2)


def shade_at(image: Image.Image, x: int, y: int) -> int:
    found = image.convert("RGB").getpixel((x, y))
    assert isinstance(found, tuple)
    return int(found[0])
