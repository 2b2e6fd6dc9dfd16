"""The merger's tables without its texts, at sizes whose texts would take days or no disk holds.

    .envs/main/bin/python tests/bench/merge_tables.py [--sizes 1000000 4000000 12000000]
        [--memory 500MB] [--free 25] [--work DIR]

A size is the number of right rows, of wrong rows, and of possible pairs: two orders of every other
comparison, as in merge.py. What depends on all rows at once is run on them: finding partners,
choosing and balancing, the account of all rows, and the order of the file. Judging and comparing
texts is not: it goes row by row and bucket by bucket. Prints Markdown; "disk" is the most that the
folder of the database had, looked at every half second, "memory" the largest resident set of this
process so far. Stops before a size when less than --free GB would be left.
"""

import argparse
import os
import resource
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from cot_reward.pairing import held_out
from cot_reward.pairing.allowed_texts import Admission
from cot_reward.pairing.balance import balance
from cot_reward.pairing.engine.database import Engine
from cot_reward.pairing.engine.match import POSSIBLE_PAIRS, UNPAIRED_ROWS
from cot_reward.pairing.engine.scan import SCHEMA, Part, ScannedPart, shard_path
from cot_reward.pairing.excluded_rows import find_pairable_rows
from cot_reward.pairing.selection import select_pairs
from cot_reward.pairing.summary import account_for_rows, summarise_file

# Measured: about 700 bytes a possible pair; with room to spare.
DISK_BYTES_PER_PAIR = 1500

# Of presentation i: its comparison, and what stands for the comparison.
COMPARISON = "2 * (i // 3) + i % 3 // 2"
KEY = f"md5(({COMPARISON})::VARCHAR) || md5('b' || ({COMPARISON})::VARCHAR)"


def number(what: str) -> str:
    """64 bits with a sign, as digests are."""
    return f"(hash({what}) >> 1)::BIGINT"


ROW_COLUMNS = {
    "row": "side * {size} + i", "right_side": "side = 0", "fate": "''",
    "pictures": number(f"'pictures', {COMPARISON}"), "id": KEY, "comparison": number(COMPARISON),
    "presentation": number("'place', i"), "preferred": number(f"'better', {COMPARISON}"),
    "response": number("'response', i, side"), "task": "'image_generation'", "form": "'think'",
    "source": f"if(({COMPARISON}) % 2 = 0, 'a', 'b')", "model": "if(side = 0, 'm', 'n')",
    "order": "if(i % 3 = 1, 'swapped', 'given')", "verdict": "if(side = 0, 'correct', 'incorrect')",
    "coherence": "'coherent'", "answer": "1 + (i + side) % 2", "asked": "7",
}  # fmt: skip
PAIR_COLUMNS = {
    "batch": "i // 6144", "start": "i % 6144 * 1800", "length": "1800", "id": KEY,
    "presentation": number("'place', i"), "comparison": number(COMPARISON),
    "rank_in_presentation": "0", "cost": "hash('cost', i) / 2.0 ** 64", "task":
    "'image_generation'", "source": ROW_COLUMNS["source"],
    "chosen_answer": "if(hash('answer', i) % 100 < 55, 1, 2)", "rejected_answer": "1",
    "longer": "if(hash('longer', i) % 100 < 70, 1, -1)", "length_difference": "5",
    "kind": "'same_model'", "chosen_row": "i", "rejected_row": "{size} + i",
    "shown": f"[{number(f'1, {COMPARISON}')}, {number(f'2, {COMPARISON}')}, "
             f"{number(f'3, ({COMPARISON}) // 8')}]",
    "filled": "['images']", "spare": "false", "chosen_text": number("'chosen', i"),
    "rejected_text": number("'rejected', i"),
}  # fmt: skip


def columns(schema: Any, made: dict[str, str], size: int) -> str:
    """The columns of a schema in SQL; a column that is not in `made` is an empty text."""
    empty = "''"
    named = ", ".join(f'{made.get(name, empty)} AS "{name}"' for name in schema.names)
    return named.replace("{size}", str(size))


class Watch(threading.Thread):
    """Looks at a folder until told to stop; `disk` is the most that it had, in MiB."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self.disk, self._folder, self._over = 0.0, folder, threading.Event()

    def run(self) -> None:
        while not self._over.wait(0.5):
            used = 0
            for root, _, names in os.walk(self._folder):
                for name in names:
                    path = os.path.join(root, name)
                    used += os.stat(path).st_blocks if os.path.exists(path) else 0
            self.disk = max(self.disk, used / 2048)

    def stop(self) -> None:
        self._over.set()
        self.join()


def measure(folder: Path, size: int, memory: str) -> None:
    seconds: dict[str, float] = {}

    def timed(what: str, work: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        result = work()
        seconds[what] = time.perf_counter() - started
        print(f"{size}: {what} {seconds[what]:.1f} s", file=sys.stderr, flush=True)
        return result

    with Engine(folder, memory, 2) as engine:
        held_out.exclude(engine, [], folder)
        engine.run(
            f"COPY (SELECT {columns(SCHEMA, ROW_COLUMNS, size)} FROM range({size}) AS r(i), "
            f"(VALUES (0), (1)) AS s(side)) TO '{shard_path(folder, 0, 'all')}'"
        )
        watch = Watch(folder)
        watch.start()
        timed("finding partners", lambda: find_pairable_rows(engine, 1, 0.0, 1.0))
        engine.add("possible_pairs", POSSIBLE_PAIRS.empty_table())
        engine.add("unpaired_rows", UNPAIRED_ROWS.empty_table())
        made = columns(POSSIBLE_PAIRS, PAIR_COLUMNS, size)
        engine.run(f"INSERT INTO possible_pairs SELECT {made} FROM range({size}) AS r(i)")
        timed("first choice", lambda: select_pairs(engine, 1, 0.0, 0))
        timed(
            "balancing",
            lambda: balance(
                engine, pairs_per_comparison=1, positions=True, lengths=True, weights={}, seed=0
            ),
        )
        admission = Admission(frozenset(), frozenset(), frozenset())
        scanned = [
            ScannedPart(Part(n, folder, side, 0, 0, 1, folder, "", admission), size, size, 0)
            for n, side in enumerate((True, False))
        ]
        timed("account", lambda: account_for_rows(engine, scanned))
        pairs = summarise_file(engine, "train", None)["pairs"]

        def read_in_order() -> None:
            cursor = engine.database.cursor().execute(
                "SELECT batch, start, length FROM pairs WHERE state = 'used' ORDER BY id, "
                "presentation, rank_in_presentation"
            )
            while cursor.fetchmany(10_000):
                pass

        timed("order", read_in_order)
        watch.stop()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    each = 1e6 * sum(seconds.values()) / size
    cells = [f"{of:.1f}" for of in (*seconds.values(), each)]
    cells += [f"{of:.0f}" for of in (peak, watch.disk, pairs)]
    print(f"| {size} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[10**6, 4 * 10**6, 12 * 10**6])
    parser.add_argument("--memory", default="500MB", help="of the database")
    parser.add_argument("--free", type=float, default=25, help="GB that stay free")
    parser.add_argument("--work", type=Path, help="for a folder of its own (the system's)")
    options = parser.parse_args()
    print(
        "| pairs | finding partners s | first choice s | balancing s | account s | order s | "
        "us a pair | memory MiB | disk MiB | kept |"
    )
    print("|" + "---|" * 10, flush=True)
    for size in sorted(options.sizes):
        folder = Path(tempfile.mkdtemp(prefix="tables-", dir=options.work))
        try:
            if shutil.disk_usage(folder).free < options.free * 1e9 + DISK_BYTES_PER_PAIR * size:
                sys.exit(f"{folder}: too little disk for {size} pairs")
            measure(folder, size, options.memory)
        finally:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
