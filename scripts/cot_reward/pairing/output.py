"""The used pairs: train.jsonl and eval.jsonl, and a sample for the shortcut classifiers."""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import orjson

from cot_reward.errors import UserError
from cot_reward.pairing.engine.database import LOCK_FILE, Engine
from cot_reward.pairing.engine.lines import PairLines
from cot_reward.pairing.listings import LISTS
from cot_reward.pairing.plots import PLOTS
from cot_reward.pairing.rows_file import RowsFile
from cot_reward.pairing.shortcut import Texts
from cot_reward.rows.preference_forms import WrittenForm, in_form

# Pairs that the classifiers see: above some thousands, accuracies hardly change.
SHORTCUT_PAIRS = 4000
_ROWS_PER_FETCH = 10_000
# Everything that a merge writes into its folder, or removes from it.
OUTPUT_FILES = (
    "train.jsonl", "eval.jsonl", "summary.json", LOCK_FILE, *LISTS,
    *(f"plots/{name}" for name in PLOTS),
)  # fmt: skip


# The first comparison of each kind of media of a split that has several kinds. These come first in
# the file: `datasets` takes a column for one without a type when it is an empty list in all rows of
# the first chunk, and fails at the first row that has something there.
_LEADING = """
    SELECT first FROM (
        SELECT split, min(id) AS first, count(*) OVER (PARTITION BY split) AS kinds
        FROM pairs WHERE state = 'used' GROUP BY split, filled)
    WHERE kinds > 1"""


def write_pairs(
    engine: Engine, folder: Path, out: Path, splits: Sequence[str], form: WrittenForm = "ours"
) -> dict[str, str]:
    """Replace out/SPLIT.jsonl of each split; the summary of an earlier merge is removed.

    Returns the sha256 of each file by its name. The rows of `PairLines` are gone then. The files
    are complete and safe on the disk before an earlier file is touched. Raises UserError when a
    name is a folder, and for a pair that the form cannot hold.
    """
    with ExitStack() as stack:
        lines = stack.enter_context(PairLines(folder))
        files = {split: stack.enter_context(RowsFile(folder / split)) for split in splits}
        # Pairs of one presentation are neighbours, so that a trainer can share their prompt.
        cursor = engine.database.cursor().execute(
            f"SELECT id IN ({_LEADING}) AS leads, split, batch, start, length FROM pairs "
            "WHERE state = 'used' ORDER BY leads DESC, id, presentation, rank_in_presentation"
        )
        while rows := cursor.fetchmany(_ROWS_PER_FETCH):
            for leads, split, batch, start, length in rows:
                # Batches are ranges of keys, so no later row is of an earlier batch.
                if not leads:
                    lines.remove_before(batch)
                line = lines.read(batch, start, length)
                files[split].write(line_in(form, line))
        digests = {f"{split}.jsonl": file.close() for split, file in files.items()}
    put_in_place(folder, out, splits)
    return digests


def put_in_place(folder: Path, out: Path, splits: Sequence[str]) -> None:
    """Replace out/SPLIT.jsonl by the complete file folder/SPLIT, and remove an earlier summary.

    Raises UserError when a name is a folder.
    """
    for split in splits:
        if (out / f"{split}.jsonl").is_dir():
            raise UserError(f"{out / split}.jsonl: is a folder")
    # An evaluation file never lies beside training rows that it was not split from.
    for name in ("summary.json", "eval.jsonl"):
        (out / name).unlink(missing_ok=True)
    for split in splits:
        os.replace(folder / split, out / f"{split}.jsonl")


def line_in(form: WrittenForm, line: bytes) -> bytes:
    """A row of ours in this form. Raises UserError for a pair that the form cannot hold."""
    if form == "ours":
        return line
    pair = orjson.loads(line)
    try:
        return orjson.dumps(in_form(pair, form), option=orjson.OPT_APPEND_NEWLINE)
    except ValueError as error:
        raise UserError(
            f"--form {form}: {error} (comparison {pair['id']:.12}); choose another form, or leave "
            "its files out"
        ) from None


def sample_texts(engine: Engine, folder: Path, seed: int, kind: str = "") -> list[Texts]:
    """Some pairs of train.jsonl for the shortcut classifiers, drawn by the seed.

    `kind`: pairs of this kind only (`pairs.PAIR_KINDS`).
    Their answers are the findings of the first pass: no text is judged again.
    """
    places = engine.run(
        "SELECT batch, start, length, id, chosen_answer, rejected_answer FROM ("
        "FROM pairs WHERE state = 'used' AND split = 'train' AND $kind IN ('', kind) "
        "ORDER BY md5($seed || ' sample ' || id), id, presentation, rank_in_presentation "
        "LIMIT $count) ORDER BY ALL",
        {"seed": str(seed), "count": SHORTCUT_PAIRS, "kind": kind},
    )
    texts = []
    with PairLines(folder) as lines:
        for batch, start, length, key, *answers in places:
            row = orjson.loads(lines.read(batch, start, length))
            texts.append(Texts(key, row["chosen"], row["rejected"], *answers))
    return texts
