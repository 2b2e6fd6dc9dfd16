"""prepare_data.py: rows a second, checked pictures beside a bare decoding loop, frames of videos.

    .envs/main/bin/python tests/bench/preparing.py [--rows 200000] [--pictures 4000] [--videos 200]

Prints Markdown. Rows are mapped without pictures, from JSONL. `check` and the bare loop (the same
threads open and decode the same files, Pillow's `load`) take turns; the ratio is within a round.
The files have 2,000 different pictures at most, and each has contents of its own (bytes behind
its end). Videos are of 100 frames of 64 x 48; the memory is this process's peak after half of them
and after all. Looks: of 200 square parts of photographs that come with other packages, how many
are found again by their perceptual hash after another encoding, at the same and at half the size.
"""

import argparse
import contextlib
import io
import random
import resource
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from pathlib import Path
from typing import Any

import PIL

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cot_reward import settings
from cot_reward.media.images import MAX_PIXELS, decode_checked
from cot_reward.preparing.check import check
from cot_reward.preparing.convert import convert
from cot_reward.preparing.forms import FormReader
from cot_reward.preparing.looks import MOST_BITS, look_of
from cot_reward.preparing.mapping import ColumnMap
from cot_reward.preparing.settings import CheckSettings, ConvertSettings
from cot_reward.preparing.tables import read_table
from cot_reward.rows.labels import FileLabels
from helpers.rows import raw_row, write_lines
from helpers.videos import video
from PIL import Image

THREADS = 2
MAP = ["text=prompt", "first=a", "second=b", "label=label"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--pictures", type=int, default=4_000)
    parser.add_argument("--videos", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        rows_a_second(root, given.rows)
        looks()
        pictures(root, given.pictures, given.rounds)
        videos(root, given.videos)


def rows_a_second(root: Path, count: int) -> None:
    caption = "a large pale disc on a table, seen from above, " * 2
    mapped = (
        {"prompt": f"{caption}{n}", "a": f"{n}a.png", "b": f"{n}b.png", "label": 1 + n % 2}
        for n in range(count)
    )
    known = (raw_row(f"{caption}{n}", [f"{n}a.png", f"{n}b.png"], 1 + n % 2) for n in range(count))
    print("| rows | columns | rows for each CPU second |\n|---|---|---|")
    for name, rows, columns in (("a map", mapped, MAP), ("a known form", known, [])):
        file = write_lines(root / "rows.jsonl", rows)
        reader = FormReader(ColumnMap(columns) if columns else None, FileLabels())
        start = time.process_time()
        found = sum(1 for _, row in read_table(file) if reader.pair(row))
        seconds = time.process_time() - start
        assert found == count
        print(f"| {count:,} | {name} | {count / seconds:,.0f} |")


def pictures(root: Path, count: int, rounds: int) -> None:
    choice = random.Random(0)
    (root / "p").mkdir()
    contents = []
    for _ in range(min(count, 2_000)):
        small = Image.frombytes("RGB", (32, 32), choice.randbytes(32 * 32 * 3))
        file = io.BytesIO()
        small.resize((512, 512), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        contents.append(file.getvalue())
    paths = [root / f"p/{number}.jpg" for number in range(count)]
    for number, path in enumerate(paths):
        path.write_bytes(contents[number % len(contents)] + number.to_bytes(8, "big"))
    rows = [
        {"task": "image_generation", "text": f"caption {n}", "label": 1 + n % 2,
         "candidates": [f"p/{2 * n}.jpg", f"p/{2 * n + 1}.jpg"]}
        for n in range(count // 2)
    ]  # fmt: skip

    def checked(some: list[dict[str, Any]]) -> float:
        """Seconds of a check of the rows."""
        file = write_lines(root / "checked.jsonl", some)
        argv = [str(file), "--media-root", str(root), "--workers", str(THREADS)]
        start = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            assert check(settings.parse(CheckSettings, "", argv=argv)) == 0
        return time.perf_counter() - start

    checked(rows[: len(rows) // 2])
    half = peak()
    checked(rows)
    # Before the bare loop, whose futures take more.
    whole = peak()

    def bare(path: Path) -> None:
        with Image.open(path) as image:
            image.load()

    bare_seconds, check_seconds = [], []
    for _ in range(rounds):
        start = time.perf_counter()
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(bare, paths))
        bare_seconds.append(time.perf_counter() - start)
        check_seconds.append(checked(rows))
    ratios = [one / other for one, other in zip(check_seconds, bare_seconds, strict=True)]
    alone, checked, ratio = map(statistics.median, (bare_seconds, check_seconds, ratios))
    print(
        f"\n{count:,} JPEGs of 512 x 512, {THREADS} threads, medians of {rounds} rounds: a bare "
        f"loop {alone:.2f} s, check {checked:.2f} s, {ratio:.2f} ({min(ratios):.2f} to "
        f"{max(ratios):.2f}) of it; peak memory {half} MiB with half of them, {whole} with all"
    )


def peak() -> int:
    """The most memory that this process has had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def looks(count: int = 200) -> None:
    packages = Path(PIL.__file__).parents[1]
    found = [packages / "matplotlib/mpl-data/sample_data/grace_hopper.jpg"]
    found += [packages / f"sklearn/datasets/images/{name}.jpg" for name in ("china", "flower")]
    photographs = [Image.open(path).convert("RGB") for path in found]
    choice = random.Random(0)
    parts = []
    for _ in range(count):
        photograph = choice.choice(photographs)
        side = choice.randint(min(photograph.size) // 3, min(photograph.size) * 3 // 4)
        x, y = (choice.randint(0, length - side) for length in photograph.size)
        parts.append(photograph.crop((x, y, x + side, y + side)).resize((512, 512)))
    hashes = [look_of(part) for part in parts]
    nearest = min((one ^ other).bit_count() for one, other in combinations(hashes, 2))
    print(
        f"\n| encoding of {count} pictures | equal hash | at most {MOST_BITS} bits differ |\n"
        "|---|---|---|"
    )
    for name, size, kind, quality in (
        ("JPEG 90", 512, "JPEG", 90), ("JPEG 50", 512, "JPEG", 50), ("WebP 75", 512, "WEBP", 75),
        ("JPEG 75, half the size", 256, "JPEG", 75),
    ):  # fmt: skip
        differ = []
        for part, before in zip(parts, hashes, strict=True):
            file = io.BytesIO()
            part.resize((size, size)).save(file, kind, quality=quality)
            # As `check` decodes it.
            again = decode_checked(file.getvalue(), Path("part"), MAX_PIXELS)[0]
            differ.append((look_of(again) ^ before).bit_count())
        equal = sum(bits == 0 for bits in differ) / count
        near = sum(bits <= MOST_BITS for bits in differ) / count
        print(f"| {name} | {equal:.1%} | {near:.1%} |")
    print(f"\nAny two of the pictures differ in {nearest} bits or more")


def videos(root: Path, count: int) -> None:
    choice = random.Random(1)
    for number in range(10):
        video(root / f"v/{number}.mp4", [choice.randrange(250) for _ in range(100)])
    whole = [(root / f"v/{number}.mp4").read_bytes() for number in range(10)]
    for number in range(count):
        # Different contents: bytes behind the end of the file.
        (root / f"v/{number}.mp4").write_bytes(whole[number % 10] + number.to_bytes(8, "big"))
    peaks = []
    seconds = 0.0
    for part, names in enumerate((range(count // 2), range(count // 2, count))):
        rows = [
            {"prompt": f"{n}", "a": f"v/{n}.mp4", "b": f"v/{(n + 1) % count}.mp4", "label": 1}
            for n in names
        ]
        file = write_lines(root / f"videos{part}.jsonl", rows)
        argv = [file, "--media-root", root, "--out", root / f"out{part}", "--map", *MAP,
                "--task", "video_generation", "--workers", THREADS]  # fmt: skip
        start = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            assert convert(settings.parse(ConvertSettings, "", argv=list(map(str, argv)))) == 0
        seconds += time.perf_counter() - start
        peaks.append(peak())
    made = len(list((root / "frames").glob("*/*/*.jpg")))
    print(
        f"\n{count:,} videos of 100 frames, 8 frames of each ({made:,} files): "
        f"{count / seconds:.1f} videos/s; peak memory {peaks[0]} MiB after half, {peaks[1]} after "
        "all"
    )


if __name__ == "__main__":
    main()
