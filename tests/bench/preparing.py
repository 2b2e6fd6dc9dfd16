"""prepare_data.py: rows a second, checked pictures beside a bare decoding loop, frames of videos.

    .envs/main/bin/python tests/bench/preparing.py [--rows 200000] [--pictures 4000] [--videos 200]

Prints Markdown. Rows are mapped without pictures, from JSONL. `check` and the bare loop (the same
threads open and decode the same files, Pillow's `load`) take turns; the ratio is within a round.
Videos are of 100 frames of 64 x 48; the memory is this process's peak after half of them and
after all.
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
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cot_reward import settings
from cot_reward.preparing.check import check
from cot_reward.preparing.convert import convert
from cot_reward.preparing.forms import FormReader
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
    paths = []
    for number in range(count):
        small = Image.frombytes("RGB", (32, 32), choice.randbytes(32 * 32 * 3))
        path = root / f"p/{number}.jpg"
        small.resize((512, 512), Image.Resampling.BICUBIC).save(path, quality=90)
        paths.append(path)
    rows = [
        {"task": "image_generation", "text": f"caption {n}", "label": 1 + n % 2,
         "candidates": [f"p/{2 * n}.jpg", f"p/{2 * n + 1}.jpg"]}
        for n in range(count // 2)
    ]  # fmt: skip
    file = write_lines(root / "checked.jsonl", rows)
    argv = [str(file), "--media-root", str(root), "--workers", str(THREADS)]

    def bare(path: Path) -> None:
        with Image.open(path) as image:
            image.load()

    bare_seconds, check_seconds = [], []
    for _ in range(rounds):
        start = time.perf_counter()
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(bare, paths))
        bare_seconds.append(time.perf_counter() - start)
        start = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            assert check(settings.parse(CheckSettings, "", argv=argv)) == 0
        check_seconds.append(time.perf_counter() - start)
    ratios = [one / other for one, other in zip(check_seconds, bare_seconds, strict=True)]
    alone, checked, ratio = map(statistics.median, (bare_seconds, check_seconds, ratios))
    print(
        f"\n{count:,} JPEGs of 512 x 512, {THREADS} threads, medians of {rounds} rounds: a bare "
        f"loop {alone:.2f} s, check {checked:.2f} s, {ratio:.2f} ({min(ratios):.2f} to "
        f"{max(ratios):.2f}) of it"
    )


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
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
    made = len(list((root / "frames").glob("*/*/*.jpg")))
    print(
        f"\n{count:,} videos of 100 frames, 8 frames of each ({made:,} files): "
        f"{count / seconds:.1f} videos/s; peak memory {peaks[0]} MiB after half, {peaks[1]} after "
        "all"
    )


if __name__ == "__main__":
    main()
