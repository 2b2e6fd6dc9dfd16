"""The merger next to a plain dictionary join, in turns, over ever more rows.

    .envs/main/bin/python tests/bench/merge.py [--sizes 100000 1000000 4000000] [--rounds 3]
        [--row-bytes 1000 2500 8000] [--no-dictionary] [--max-bytes 5e9] [--work DIR] [--keep]
        [--ours FLAG ...]

A size is the number of rows in each of the two files: correct and incorrect judged responses, all
texts distinct, shuffled, 1% of them noise (see `NOISE`). Each size is measured with rows of each
length. Rows of 2,200 bytes and more have the project's own prompt. A size with rows of more than
`--max-bytes` in a file is left out. The default sizes need 40 GB of disk below --work. Every
run is a process of its own, the two ways take turns. Prints Markdown:

- seconds: from start to end, start-up and writing included; CPU s: of the process tree.
- peak memory: the largest sum over the process tree, looked at every 0.2 s (less often where a look
  takes long: the kernel walks all pages for it), of PSS, which counts shared pages once, or of RSS.

- peak disk: the most that the folder of the pairs had on the disk, its temporary files included.

"dictionary" is what one would write in an afternoon: json.loads into dicts by (id, order), the
judge for every row, the last one wins. It is skipped where it would need more than 70% of the
memory. Exits with 1 when a run fails or its pairs are not those that the data hold.
"""

import argparse
import contextlib
import json
import os
import random
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import date
from hashlib import blake2b, sha256
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from cot_reward.judge import destination, judge
from cot_reward.provenance import versions
from cot_reward.records import PAIR_FIELDS, ROW_FIELDS, comparison_key, turns
from cot_reward.tasks import TASKS
from cot_reward.tasks.generation import caption_in
from cot_reward.tasks.prompts import fill, template_hash

REPO = Path(__file__).parents[2]
SEED = b"0"
SIDES = ("correct", "incorrect")
TASK = TASKS["image_generation"]
MEMORY_MIB = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**20  # MiB
MAX_MEMORY_SHARE = 0.7  # of the memory that the dictionaries may fill
# What they need for each byte of a file, where no smaller size was measured.
DICTIONARY_BYTES_PER_BYTE = 7.5
# Disk for each byte of a file: both files, pairs of two runs, and room to sort.
DISK_BYTES_PER_BYTE = 6

# --- the data -------------------------------------------------------------------------------------

# Rows are numbered; row n of both files is about presentation n, but for the first ten of every
# thousand. Nothing is remembered: all that a row says follows from its number.
ROWS_PER_BLOCK = 1000
NOISE = {
    "malformed in correct": (0,),
    "malformed in incorrect": (1,),
    "without a partner": (2, 3, 4),
    "chosen, but its totals contradict its answer": (5, 6, 7),
    "twice in both files": (8,),
    "of the next presentation, in other words": (9,),
}
NOISY_ROWS_PER_BLOCK = sum(map(len, NOISE.values()))
# Presentations from here on are in one file only.
FIRST_UNPARTNERED = 30_000_000

SOURCES = ("EvalMuse/train_data", "HPD/train_data")
MODELS = ("think-stage1", "think-stage2")
# A short one, so that 1.2 KB are mostly text that differs from row to row.
SHORT_TEMPLATE = "Which of two images made from this caption is better? Text Caption: [{caption}]"
# Rows of this many bytes have room for whole reasons, and for the project's own prompt.
BYTES_FOR_WHOLE_REASONS, BYTES_FOR_OWN_PROMPT = 1150, 2200
# Further reasons that one digest gives.
REASONS_PER_DIGEST = 21


def inner(text: str) -> str:
    """Text as it stands between the quotes of a JSON string."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def phrases(first: str, second: str) -> list[str]:
    """256 phrases, of which one byte chooses: each of 16 beginnings with each of 16 endings."""
    made = [inner(f"{a} {b}") for a, b in product(first.split(","), second.split(","))]
    assert len(set(made)) == 256, len(set(made))
    return made


# No phrase may speak of totals or of both images, which would change what the judge reads.
WHAT = phrases(
    "the light,its colour,the outline,the background,the figure,the texture,the perspective,the "
    "framing,the foreground,each shadow,the surface,the horizon,the left half,the right edge,the "
    "focus,the word",
    "stays,looks,is,seems,appears,turns,reads as,feels,remains,gets,is kept,was left,ends up,"
    'proves,becomes,is "drawn"',
)
HOW = phrases(
    "rather,very,slightly,clearly,almost,oddly,quite,barely,too,a bit,mostly,fairly,visibly,hardly,"
    "nicely,plainly",
    "soft,sharp,flat,warm,muddy,crisp,uneven,lively,washed out,natural,stiff,balanced,crowded,"
    "simple,blurred,strong",
)
WHERE = phrases(
    "near,behind,around,above,along,beside,across,under,before,inside,next to,opposite,"
    "beyond,at,towards,below",
    "the window,the hands,the sign,the river,the roof tiles,the face,the old tree,the "
    "table,the wheels,the clouds,the stairs,the mirror,the dog,the cloth,the lamp,the crowd",
)
# A tenth of the texts are not plain ASCII.
WHERE[:4] = "near the café", "behind the “door”", "above the façade", "by the river – or lake"
WHO = phrases(
    "a tall,a small,an old,a red,a wooden,a sleeping,a glass,a running,a painted,a tiny,a snowy,a "
    "broken,a golden,a blue,a “lost”,a rusty",
    "cat,lighthouse,bicycle,astronaut,teapot,violin,fox,market stall,robot,jalapeño,castle,ship,"
    "dancer,train,owl,baker",
)
STYLE = phrases(
    "in watercolour,as a photo,in oil,as a woodcut,in pencil,in neon light,as a stamp,in clay,as "
    "a mosaic,in ink,at dusk,at dawn,in thick fog,in heavy rain,in spring,at noon",
    "with a wide view,with deep shadows,with few colours,in high detail,from above,from below,"
    "with grain,without people,with soft edges,with bold lines,on paper,on canvas,in a square "
    "frame,with a pale sky,with a long exposure,in the style of 1920",
)


def scores(winner: int, count: int = 4096) -> list[tuple[Any, ...]]:
    """Three scores for each image, in turns, and both sums as they are written out."""
    rng = random.Random(winner)
    made: list[tuple[Any, ...]] = []
    while len(made) < count:
        first, second = ([rng.randint(1, 10) for _ in range(3)] for _ in range(2))
        lead = sum(first) - sum(second)
        if lead > 0 if winner == 1 else lead < 0:
            sums = ("+".join(map(str, of)) + f"={sum(of)}" for of in (first, second))
            made.append((*sum(zip(first, second, strict=True), ()), *sums))
    return made


SCORES = (scores(1), scores(2))


def presented(number: int) -> tuple[int, bool]:
    """The comparison of a presentation, and whether it is swapped: every other one has both."""
    group, place = divmod(number, 3)
    return 2 * group + place // 2, place == 1


def preferred(comparison: int) -> tuple[bytes, int]:
    """What chance says about a comparison, and its label in the given order."""
    chance = blake2b(b"%d" % comparison, key=SEED, digest_size=8).digest()
    # The first in 55%: where a comparison has one order only, answers have to be balanced.
    return chance, 1 if chance[0] < 141 else 2


def label_of(comparison: int, swapped: bool) -> int:
    """The label as it counts in this order."""
    return 3 - preferred(comparison)[1] if swapped else preferred(comparison)[1]


def reason(chance: bytes, at: int, brief: bool = False) -> str:
    how = HOW[chance[at + 1]]
    return how if brief else f"{WHAT[chance[at]]} {how} {WHERE[chance[at + 2]]}"


@dataclass(frozen=True)
class Form:
    """What makes rows as long as they are: a prompt with a gap for the caption, further reasons."""

    prompt: str
    template_hash: str
    brief: bool
    reasons: int = 0

    @classmethod
    def of(cls, row_bytes: int) -> "Form":
        template = TASK.template if row_bytes >= BYTES_FOR_OWN_PROMPT else SHORT_TEMPLATE
        prompt = inner("<image><image>" + fill(template, {"caption": "\0"}))
        # A percent sign of the prompt is none of a format.
        prompt = prompt.replace("%", "%%").replace(inner("\0"), "%s")
        form = cls(prompt, template_hash(template), row_bytes < BYTES_FOR_WHOLE_REASONS)
        shortest, longer = form.mean_bytes, replace(form, reasons=50).mean_bytes
        reasons = round(50 * (row_bytes - shortest) / (longer - shortest))
        return replace(form, reasons=max(0, reasons))

    @property
    def mean_bytes(self) -> float:
        """Of some rows."""
        return sum(len(row(self, 0, number).encode()) for number in range(100)) / 100


def more_reasons(count: int, *drawn: int) -> str:
    """A paragraph of so many reasons; "" for none."""
    found: list[str] = []
    for block in range(-(-count // REASONS_PER_DIGEST)):
        chance = blake2b(b"more %d %d %d %d" % (block, *drawn), key=SEED).digest()
        found += (reason(chance, 3 * at) for at in range(REASONS_PER_DIGEST))
    return f"Details: {'; '.join(found[:count])}.\\n" if count else ""


def row(form: Form, side: int, number: int, sample: int = 0, contradicts: bool = False) -> str:
    """A row of a file as JSON. By hand: json.dumps would take longer than all the rest."""
    comparison, swapped = presented(number)
    of, label = preferred(comparison)
    chance = blake2b(b"%d %d %d" % (side, number, sample), key=SEED).digest()
    caption = f"{WHO[of[1]]} {WHERE[of[2]]} {STYLE[of[3]]}"
    source = SOURCES[of[4] & 1]
    folder = source.partition("/")[0]
    one, two = (f"{folder}/images/{comparison:08d}_{index}.png" for index in (0, 1))
    # As comparison_key does it; the names are in order, and JSON's escapes are the same.
    key = sha256(f'["{TASK.name}","{caption}",[],["{one}","{two}"]]'.encode()).hexdigest()
    if swapped:
        label, one, two = 3 - label, two, one
    answer = 3 - label if side else label
    # The wrong ones are of both models, the right ones mostly of the later.
    model = MODELS[chance[0] & 1 if side else chance[0] % 4 > 0]
    a1, b1, a2, b2, a3, b3, first, second = SCORES[(answer - 1) ^ contradicts][
        (chance[1] << 4) + (chance[2] & 15)
    ]
    return (
        f'{{"conversations": [{{"from": "human", "value": "{form.prompt % caption}"}}, '
        f'{{"from": "gpt", "value": "<think>\\n'
        f"1. Semantic consistency: Image 1 ({a1}/10) - {reason(chance, 3, form.brief)}; "
        f"Image 2 ({b1}/10) - {reason(chance, 6, form.brief)}\\n"
        f"2. Aesthetics: Image 1 ({a2}/10) - {reason(chance, 9, form.brief)}; "
        f"Image 2 ({b2}/10) - {reason(chance, 12, form.brief)}\\n"
        f"3. Authenticity: Image 1 ({a3}/10) - {reason(chance, 15, form.brief)}; "
        f"Image 2 ({b3}/10) - {reason(chance, 18, form.brief)}\\n"
        f"{more_reasons(form.reasons, side, number, sample)}"
        f"Total score:\\nImage 1: {first}\\nImage 2: {second}\\n</think>\\n"
        f'<answer>Image {answer} is better</answer>"}}], "images": ["{one}", "{two}"], '
        f'"videos": [], "id": "{key}", "task": "{TASK.name}", "source": "{source}", '
        f'"order": "{"swapped" if swapped else "given"}", "sample": {sample}, "label": {label}, '
        f'"answer": {answer}, "verdict": "{SIDES[side]}", '
        f'"coherence": "{"contradicts" if contradicts else "coherent"}", "finish_reason": "stop", '
        f'"model": "{model}", "template_hash": "{form.template_hash}", "form": "think"}}\n'
    )


def line(form: Form, side: int, number: int) -> str:
    """Line `number` of a file, before the lines are shuffled."""
    kind = number % ROWS_PER_BLOCK
    if kind >= NOISY_ROWS_PER_BLOCK:
        return row(form, side, number)
    if kind in NOISE["of the next presentation, in other words"]:
        return row(form, side, number + 1, sample=1)
    if kind in NOISE["twice in both files"]:
        return row(form, side, number + 3)
    if kind in NOISE["chosen, but its totals contradict its answer"]:
        return row(form, side, number, contradicts=not side)
    if kind in NOISE["without a partner"]:
        return row(form, side, number + FIRST_UNPARTNERED * side)
    if kind in NOISE[f"malformed in {SIDES[side]}"]:
        whole = row(form, side, number)
        cut, lost, other = (
            whole[:700] + "\n",
            whole.replace('"conversations"', '"messages"'),
            '"a text"\n',
        )
        return (cut, lost, other)[number // ROWS_PER_BLOCK % 3]
    return row(form, side, number)


def planned(size: int) -> tuple[int, int]:
    """How many presentations, and how many comparisons, have a usable row of both kinds."""
    import numpy

    numbers = numpy.arange(size)
    numbers = numbers[numbers % ROWS_PER_BLOCK >= NOISY_ROWS_PER_BLOCK]
    # As `presented` does it.
    comparisons = 2 * (numbers // 3) + numbers % 3 // 2
    return len(numbers), len(numpy.unique(comparisons))


def shuffled(side: int, size: int) -> Iterator[int]:
    """All numbers below `size`, four bytes each in memory."""
    import numpy

    numbers = numpy.arange(size, dtype=numpy.uint32)
    numpy.random.default_rng([int(SEED), side]).shuffle(numbers)
    for start in range(0, size, 10_000):
        yield from numbers[start : start + 10_000].tolist()


def write_data(folder: Path, size: int, row_bytes: int) -> list[Path]:
    """Both files of this size, checked."""
    form = Form.of(row_bytes)
    paths, started = [folder / f"{side}.jsonl" for side in SIDES], time.perf_counter()
    for side, path in enumerate(paths):
        with path.open("w", encoding="utf-8", buffering=2**20) as file:
            file.writelines(line(form, side, number) for number in shuffled(side, size))
            file.flush()
            # Else the first run would share the disk with what is still to be written.
            os.fsync(file.fileno())
        mean = path.stat().st_size / size
        assert 0.95 <= mean / row_bytes <= 1.05, f"{path.name}: {mean:.0f} bytes a row"
        check_data(path, side)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    progress(
        f"{size} rows a side, {mean:.0f} bytes each, in {seconds:.1f} s "
        f"({2 * size / seconds:.0f} rows/s, at most {peak:.0f} MiB)"
    )
    return paths


def check_data(path: Path, side: int, count: int = 1000) -> None:
    """That rows are what the client would have written; lines are shuffled, so the first do."""
    texts, malformed = set(), 0
    with path.open(encoding="utf-8") as file:
        for text in (line for line, _ in zip(file, range(count), strict=False)):
            try:
                made = json.loads(text)
                assert {name: type(made[name]) for name in ROW_FIELDS} == ROW_FIELDS
                prompt, answer = turns(made)
            except (ValueError, LookupError, TypeError):
                malformed += 1
                continue
            found = judge(answer, TASK, made["label"], made["finish_reason"])
            stated = made["verdict"], made["coherence"], made["answer"]
            assert (found.verdict, found.coherence, found.answer) == stated, made
            assert made["verdict"] == SIDES[side], made
            assert made["id"] == comparison_key(TASK.name, caption_in(prompt), (), made["images"])
            texts.add(answer)
    assert malformed <= 0.01 * count, malformed
    assert len(texts) >= 0.99 * count, len(texts)


# --- the dictionary join --------------------------------------------------------------------------


def read_into_dict(path: Path, side: str) -> dict[tuple[str, str], dict[str, Any]]:
    rows = {}
    with path.open(encoding="utf-8") as file:
        for text in file:
            try:
                row = json.loads(text)
                answer = row["conversations"][1]["value"]
                verdict = judge(answer, TASKS[row["task"]], row["label"], row["finish_reason"])
                if destination(verdict) == side:
                    rows[row["id"], row["order"]] = row
            except (ValueError, LookupError, TypeError):
                continue
    return rows


def dictionary_join(correct: Path, incorrect: Path, out: Path) -> None:
    chosen, rejected = read_into_dict(correct, SIDES[0]), read_into_dict(incorrect, SIDES[1])
    pairs = 0
    with (out / "train.jsonl").open("w", encoding="utf-8") as file:
        for key, right in chosen.items():
            if (wrong := rejected.get(key)) is None:
                continue
            pair = {
                "problem": right["conversations"][0]["value"],
                "chosen": right["conversations"][1]["value"],
                "rejected": wrong["conversations"][1]["value"],
                "images": right["images"],
                "videos": right["videos"],
                "id": right["id"],
                "task": right["task"],
                "order": right["order"],
                "chosen_answer": right["answer"],
                "chosen_model": right["model"],
                "rejected_model": wrong["model"],
            }
            file.write(json.dumps(pair, ensure_ascii=False) + "\n")
            pairs += 1
    (out / "summary.json").write_text(json.dumps({"pairs": pairs}))


# --- one run, watched -----------------------------------------------------------------------------


@dataclass
class Run:
    seconds: float
    cpu: float
    pss: float  # MiB, as the next two
    rss: float
    disk: float
    pairs: int = 0


class Watch(threading.Thread):
    """Looks at a process and all below it, and at its folder, until told to stop."""

    def __init__(self, root: int, folder: Path) -> None:
        super().__init__(daemon=True)
        self._folder = folder
        self._root, self._over = root, threading.Event()
        self._ticks: dict[int, int] = {}
        self.pss = self.rss = self.disk = 0.0

    @property
    def cpu(self) -> float:
        return sum(self._ticks.values()) / os.sysconf("SC_CLK_TCK")

    def run(self) -> None:
        wait = 0.0
        while not self._over.wait(wait):
            started = time.perf_counter()
            seen = [self._memory(pid) for pid in self._tree()]
            self.pss = max(self.pss, sum(pss for pss, _ in seen))
            self.rss = max(self.rss, sum(rss for _, rss in seen))
            self.disk = max(self.disk, disk_used(self._folder))
            # The kernel looks at every page, and what is watched waits for it now and then.
            wait = max(0.2, 10 * (time.perf_counter() - started))

    def stop(self) -> None:
        self._over.set()
        self.join()

    def _tree(self) -> set[int]:
        """Descendants, and those whose parents have gone: they stay in the session."""
        found, parents = {self._root}, {}
        for path in Path("/proc").glob("[0-9]*/stat"):
            # It may have ended since.
            with contextlib.suppress(OSError):
                # The name before it may hold anything.
                fields = path.read_text(errors="replace").rpartition(")")[2].split()
                pid, parent, session = int(path.parent.name), int(fields[1]), int(fields[3])
                parents[pid] = parent, int(fields[11]) + int(fields[12])
                if session == self._root:
                    found.add(pid)
        while more := {pid for pid, (parent, _) in parents.items() if parent in found} - found:
            found |= more
        self._ticks |= {pid: parents[pid][1] for pid in found & parents.keys()}
        return found

    @staticmethod
    def _memory(pid: int) -> tuple[float, float]:
        """PSS and RSS in MiB, 0 when it has ended."""
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            return 0.0, 0.0
        fields = {name: rest.split() for name, _, rest in (line.partition(":") for line in lines)}
        pss, rss = (int(fields[name][0]) / 1024 if name in fields else 0 for name in ("Pss", "Rss"))
        return pss, rss


def disk_used(folder: Path) -> float:
    """MiB that the files below a folder take on the disk."""
    blocks = 0
    for root, _, names in os.walk(folder):
        for name in names:
            # It may have gone since.
            with contextlib.suppress(OSError):
                blocks += os.stat(os.path.join(root, name)).st_blocks
    return blocks / 2048


def watched(command: list[str], log: Path, folder: Path) -> Run:
    """Run a command that works in a folder to its end. Exits when it fails."""
    with log.open("w+") as output:
        started = time.perf_counter()
        # A session of its own tells its processes from all others.
        process = subprocess.Popen(
            command, cwd=REPO, stdout=output, stderr=output, start_new_session=True
        )
        watch = Watch(process.pid, folder)
        watch.start()
        try:
            _, status, usage = os.wait4(process.pid, 0)
            seconds = time.perf_counter() - started
        except KeyboardInterrupt:
            # The terminal tells our session alone.
            os.killpg(process.pid, signal.SIGTERM)
            raise
        finally:
            watch.stop()
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            output_end = f"{' '.join(command)}\n{output.read()[-5000:]}"
            sys.exit(f"a run ended with {process.returncode}: {output_end}")
    # What nobody has waited for is missing from the usage, but was seen.
    cpu = max(usage.ru_utime + usage.ru_stime, watch.cpu)
    return Run(seconds, cpu, watch.pss, watch.rss, watch.disk)


# --- what came out --------------------------------------------------------------------------------


def check_pairs(out: Path, size: int) -> int:
    """The number of pairs. Fails unless they are pairs, and of (nearly) all comparisons."""
    import numpy

    pairs = int(json.loads((out / "summary.json").read_text())["pairs"])
    presentations, comparisons = planned(size)
    # A comparison may give a pair in each order, or in one of them.
    assert 0.9 * comparisons <= pairs <= presentations, (pairs, comparisons, presentations)
    sample = set(random.Random(0).sample(range(pairs), min(1000, pairs)))
    found = array("Q")
    with (out / "train.jsonl").open(encoding="utf-8") as file:
        for number, text in enumerate(file):
            pair = json.loads(text)
            # 15 digits are 60 bits: enough to tell millions apart.
            found.append(2 * int(pair["id"][:15], 16) + (pair["order"] == "swapped"))
            if number in sample:
                check_pair(pair)
    keys = numpy.frombuffer(found, dtype=numpy.uint64)
    assert len(keys) == pairs, f"{len(keys)} lines, but {pairs} pairs in the summary"
    assert len(numpy.unique(keys)) == pairs, "a presentation has two pairs"
    found_comparisons = len(numpy.unique(keys >> numpy.uint64(1)))
    assert 0.9 * comparisons <= found_comparisons <= comparisons, (found_comparisons, comparisons)
    return pairs


def check_pair(pair: dict[str, Any]) -> None:
    """That both texts are about the same two images as shown, the right one and the wrong one."""
    assert {name: type(pair[name]) for name in PAIR_FIELDS} == PAIR_FIELDS, pair
    caption, images = caption_in(pair["problem"]), pair["images"]
    assert pair["id"] == comparison_key(TASK.name, caption, (), images), pair
    swapped = pair["order"] == "swapped"
    assert (sorted(images) != images) is swapped, pair
    comparison = int(images[0].rpartition("/")[2].partition("_")[0])
    label = label_of(comparison, swapped)
    assert destination(judge(pair["chosen"], TASK, label, "stop")) == "correct", pair
    assert destination(judge(pair["rejected"], TASK, label, "stop")) == "incorrect", pair


# --- the table ------------------------------------------------------------------------------------


def progress(what: str) -> None:
    print(time.strftime("%H:%M:%S"), what, file=sys.stderr, flush=True)


def spread(values: Iterable[float], digits: int) -> str:
    seen = list(values)
    middle, low, high = statistics.median(seen), min(seen), max(seen)
    around = f" ({low:.{digits}f} to {high:.{digits}f})" if len(seen) > 1 else ""
    return f"{middle:.{digits}f}{around}"


class Ways:
    """Runs of both ways with rows of one length, by way and size."""

    def __init__(self, row_bytes: int, more: list[str], dictionary: bool) -> None:
        self.row_bytes, self._more, self._dictionary = row_bytes, more, dictionary
        self.seen: dict[str, dict[int, list[Run]]] = {"ours": {}, "dictionary": {}}
        self._skipped: list[str] = []
        print(f"Rows of {row_bytes:,} bytes:\n")
        print(
            "| rows per side | way | seconds | CPU s | peak memory MiB (PSS) | peak disk MiB | "
            "rows/s | pairs |"
        )
        print("|" + "---|" * 8, flush=True)

    def measure(self, folder: Path, size: int, rounds: int) -> None:
        files = write_data(folder, size, self.row_bytes)
        ways = ["ours", *["dictionary"] * (self._dictionary and self._fits(size))]
        for number in range(rounds):
            for way in ways:
                run = self._run(way, files, folder / "out", size)
                self.seen[way].setdefault(size, []).append(run)
                measured = f"{run.seconds:.2f} s, {run.cpu:.2f} CPU s, {run.pss:.0f} MiB PSS"
                progress(f"{size}, round {number + 1}, {way}: {measured}, {run.rss:.0f} MiB RSS")
        for way in ways:
            print(
                f"| {' | '.join([str(size), way, *cells(size, self.seen[way][size])])} |",
                flush=True,
            )

    def _run(self, way: str, files: list[Path], out: Path, size: int) -> Run:
        out.mkdir()
        correct, incorrect = files
        command: list[Any]
        if way == "ours":
            command = ["scripts/merge_json.py", "--correct", correct, "--incorrect", incorrect]
            # Right texts are of two models, and every row is to be used.
            command += ["--pair-from", "prefer-same-model", "--out", out]
            command += ["--media-root", out.parent, *self._more]
        else:
            command = [__file__, "--dictionary-join", correct, incorrect, out]
        run = watched([sys.executable, *map(str, command)], out.with_suffix(".log"), out)
        if way == "ours":
            parts = json.loads((out / "summary.json").read_text())["seconds_of"]
            progress(", ".join(f"{part} {seconds:.1f} s" for part, seconds in parts.items()))
        run.pairs = check_pairs(out, size)
        shutil.rmtree(out)
        return run

    def _fits(self, size: int) -> bool:
        """Whether the dictionaries fit, judged by the largest size that was measured."""
        known = {of: max(run.pss for run in runs) for of, runs in self.seen["dictionary"].items()}
        at_first = DICTIONARY_BYTES_PER_BYTE * self.row_bytes / 2**20
        needed = size * (known[max(known)] / max(known) if known else at_first)
        fits = needed <= MAX_MEMORY_SHARE * MEMORY_MIB
        if not fits:
            self._skipped.append(
                f"dictionary: skipped at {size}, where it would need about {needed / 1024:.0f} GiB "
                f"of {MEMORY_MIB / 1024:.0f}"
            )
            progress(self._skipped[-1])
        return fits

    def remarks(self) -> None:
        """How time grows with the rows, RSS, and what was not measured."""
        print()
        for skipped in self._skipped:
            print(f"- {skipped}")
        for way, seen in self.seen.items():
            if not seen:
                continue
            small, large = min(seen), max(seen)
            each = {
                size: statistics.median(run.seconds for run in seen[size]) / size for size in seen
            }
            grown = (
                f"time per row at {large} over that at {small}: {each[large] / each[small]:.2f}; "
                if large > small
                else ""
            )
            rss = [f"{max(run.rss for run in runs):.0f} at {size}" for size, runs in seen.items()]
            print(f"- {way}: {grown}largest sum of RSS in MiB: {', '.join(rss)}")
        print(flush=True)


def cells(size: int, runs: list[Run]) -> list[str]:
    return [
        spread((run.seconds for run in runs), 2),
        f"{statistics.median(run.cpu for run in runs):.2f}",
        f"{max(run.pss for run in runs):.0f}",
        f"{max(run.disk for run in runs):.0f}",
        f"{2 * size / statistics.median(run.seconds for run in runs):.0f}",
        ", ".join(sorted({str(run.pairs) for run in runs})),
    ]


def environment() -> str:
    held = [
        f"{name} {number}" for name, number in versions("duckdb", "orjson", "rapidfuzz").items()
    ]
    return (
        f"{date.today()}; {os.cpu_count()} cores, {MEMORY_MIB / 1024:.0f} GiB, load "
        f"{os.getloadavg()[0]:.1f} at the start; {', '.join(held)}.\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[100_000, 1_000_000, 4_000_000], help="rows a side"
    )
    parser.add_argument("--row-bytes", type=int, nargs="+", default=[1000, 2500, 8000])
    parser.add_argument("--no-dictionary", action="store_true", help="measure ours alone")
    parser.add_argument("--rounds", type=int, help="3; above a million rows 1")
    parser.add_argument("--max-bytes", type=float, default=5e9, help="of a file (5e9)")
    parser.add_argument("--work", type=Path, help="for a folder of its own (the system's)")
    parser.add_argument("--keep", action="store_true", help="the data, in that folder")
    parser.add_argument("--ours", nargs=argparse.REMAINDER, default=[], help="more flags of ours")
    parser.add_argument("--dictionary-join", type=Path, nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.dictionary_join:
        return dictionary_join(*options.dictionary_join)
    for size in options.sizes:
        if size < ROWS_PER_BLOCK or size % ROWS_PER_BLOCK or size > FIRST_UNPARTNERED:
            parser.error(
                f"--sizes: {size} is no multiple of {ROWS_PER_BLOCK} up to {FIRST_UNPARTNERED}"
            )
    if options.work:
        options.work.mkdir(parents=True, exist_ok=True)
    print(environment(), flush=True)
    folder = Path(tempfile.mkdtemp(prefix="merge-", dir=options.work)).resolve()
    try:
        for row_bytes in options.row_bytes:
            ways = Ways(row_bytes, options.ours, not options.no_dictionary)
            for size in sorted(set(options.sizes)):
                if size * row_bytes > options.max_bytes:
                    progress(f"{size} rows of {row_bytes} bytes are more than is measured")
                    continue
                needed = DISK_BYTES_PER_BYTE * row_bytes * size
                if shutil.disk_usage(folder).free < needed:
                    sys.exit(f"{folder}: {size} rows need {needed / 1e9:.0f} GB free; see --work")
                of_size = folder / f"{size}-{row_bytes}"
                of_size.mkdir()
                ways.measure(of_size, size, options.rounds or (3 if size <= 1_000_000 else 1))
                if not options.keep:
                    shutil.rmtree(of_size)
            ways.remarks()
    finally:
        if options.keep:
            progress(f"kept: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return None


if __name__ == "__main__":
    main()
