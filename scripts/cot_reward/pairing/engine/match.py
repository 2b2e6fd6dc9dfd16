"""Second pass: sorted responses -> the pairs that could be taken, written as DPO rows."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
from pyarrow import compute

from cot_reward.pairing.engine.lines import lines_path
from cot_reward.pairing.pairs import Pair, Rules, Text, pairs_of
from cot_reward.records import PreferencePair
from cot_reward.rows.responses import digest
from cot_reward.tasks import TASKS
from cot_reward.tasks.generation import caption_in

# The columns of a batch, which is sorted by the first two.
BATCH_COLUMNS = ("id", "presentation", "comparison", "right_side", "row", "text", "model", "source",
           "order", "prompt", "answer", "asked", "task", "form", "media")  # fmt: skip

# A pair that could be taken. Its DPO row is `length` bytes from `start` of its batch's lines.
# `rank_in_presentation` counts from 0, the best pair first. `longer` is 1 when the chosen text has
# more characters, -1 when the rejected text has, else 0. `length_difference` is the characters of
# the chosen text minus those of the rejected text. `kind` is one of pairs.PAIR_KINDS. `shown` has
# a number for each medium and for the caption, which other comparisons may show, too. `filled`
# names the lists of media that are not empty. `spare`: see `pairs.Pair`. `chosen_text` and
# `rejected_text` stand for the texts.
POSSIBLE_PAIRS = pa.schema([
    ("batch", pa.int64()), ("start", pa.int64()), ("length", pa.int64()), ("id", pa.string()),
    ("presentation", pa.int64()), ("comparison", pa.int64()), ("rank_in_presentation", pa.int64()),
    ("cost", pa.float64()), ("task", pa.string()), ("source", pa.string()),
    ("chosen_answer", pa.int64()), ("rejected_answer", pa.int64()), ("longer", pa.int64()),
    ("length_difference", pa.int64()), ("kind", pa.string()), ("chosen_row", pa.int64()),
    ("rejected_row", pa.int64()), ("shown", pa.list_(pa.int64())),
    ("filled", pa.list_(pa.string())), ("spare", pa.bool_()), ("chosen_text", pa.int64()),
    ("rejected_text", pa.int64()),
])  # fmt: skip
# A row that is in no possible pair, and why.
UNPAIRED_ROWS = pa.schema([("row", pa.int64()), ("fate", pa.string())])

# Rows of a batch, at least: a comparison is never divided.
ROWS_PER_BATCH = 8192


@dataclass(frozen=True)
class Batch:
    """Some comparisons with all their rows, as an Arrow stream."""

    number: int
    data: bytes
    folder: Path
    rules: Rules


def batches_of(reader: Iterable[pa.RecordBatch], folder: Path, rules: Rules) -> Iterator[Batch]:
    """The rows of a sorted query, cut between comparisons."""
    number, held, rows = 0, list[pa.RecordBatch](), 0

    def to_batch(table: pa.Table) -> Batch:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
        return Batch(number, sink.getvalue().to_pybytes(), folder, rules)

    for batch in reader:
        held.append(batch)
        rows += batch.num_rows
        if rows < ROWS_PER_BATCH:
            continue
        table = pa.Table.from_batches(held)
        ids = table["id"].combine_chunks()
        changes = compute.not_equal(ids[1:], ids[:-1])
        last = compute.max(compute.indices_nonzero(changes)).as_py()
        if last is None:
            continue
        yield to_batch(table.slice(0, last + 1))
        number += 1
        held, rows = table.slice(last + 1).to_batches(), table.num_rows - last - 1
    if rows:
        yield to_batch(pa.Table.from_batches(held))


def match(batch: Batch) -> tuple[int, bytes, bytes]:
    """Write the DPO rows of all pairs that the batch's rows could make.

    Returns the number of rows, and Arrow streams of `POSSIBLE_PAIRS` and `UNPAIRED_ROWS`. Raises
    OSError when the DPO rows cannot be written.
    """
    with pa.ipc.open_stream(batch.data) as stream:
        table = stream.read_all()
    columns = [table[name].to_pylist() for name in BATCH_COLUMNS]
    pairs: list[tuple[Any, ...]] = []
    fates: dict[int, str] = {}
    start = 0
    with lines_path(batch.folder, batch.number).open("wb") as lines:
        for (key, presentation, comparison), group in groupby(
            zip(*columns, strict=True), itemgetter(0, 1, 2)
        ):
            sides: tuple[list[Text], list[Text]] = ([], [])
            task = form = media = ""
            for entry in group:
                right_side, row, text, model, source, order, prompt, answer, asked = entry[3:-3]
                sides[not right_side].append(
                    Text(text, model, source, order, prompt, answer, row, asked)
                )
                if right_side:
                    task, form, media = entry[-3:]
            made, unpaired = pairs_of(*sides, batch.rules, f"{key} {presentation}", task)
            fates |= unpaired
            shown = _shown(sides[0], task, media)
            lists = zip(("images", "videos"), orjson.loads(media), strict=True)
            filled = [name for name, paths in lists if paths]
            for rank, pair in enumerate(made):
                line = orjson.dumps(_to_record(key, task, form, media, pair).to_row()) + b"\n"
                lines.write(line)
                pairs.append((
                    batch.number, start, len(line), key, presentation, comparison, rank, pair.cost,
                    task, pair.chosen.source or pair.rejected.source, pair.chosen.answer,
                    pair.rejected.answer, pair.longer, pair.length_difference,
                    pair.kind(batch.rules.trained_model),
                    pair.chosen.row, pair.rejected.row, shown, filled,
                    pair.spare, digest(pair.chosen.text), digest(pair.rejected.text),
                ))  # fmt: skip
                start += len(line)
    return table.num_rows, _stream(pairs, POSSIBLE_PAIRS), _stream(fates.items(), UNPAIRED_ROWS)


def _shown(texts: Sequence[Text], task: str, media: str) -> list[int]:
    """64 bits for each medium of a presentation and, where there are some, for each caption.

    Whatever the order of the texts, whose prompts may have several wordings.
    """
    found = [digest("medium", path) for path in chain.from_iterable(orjson.loads(media))]
    if TASKS[task].compares_media:
        captions = {_caption_of(prompt) for prompt in {text.prompt for text in texts}}
        found += [digest("caption", caption) for caption in sorted(captions)]
    return found


def _caption_of(prompt: str) -> str:
    # A prompt without the marker stands for its caption: prompts of one template differ in it.
    with suppress(ValueError):
        prompt = caption_in(prompt)
    return " ".join(prompt.casefold().split())


def _to_record(key: str, task: str, form: str, media: str, pair: Pair) -> PreferencePair:
    images, videos = orjson.loads(media)
    return PreferencePair(
        problem=pair.chosen.prompt, chosen=pair.chosen.text, rejected=pair.rejected.text,
        images=images, videos=videos, id=key, task=task,
        # Rows of other projects do not name their order. Where no row does, any name is as good.
        order=pair.chosen.order or pair.rejected.order or "given", chosen_answer=pair.chosen.answer,
        chosen_model=pair.chosen.model, rejected_model=pair.rejected.model, form=form,
    )  # fmt: skip


def _stream(rows: Iterable[tuple[Any, ...]], schema: pa.Schema) -> bytes:
    columns = list(zip(*rows, strict=True)) or [()] * len(schema)
    arrays = [pa.array(column, kind) for column, kind in zip(columns, schema.types, strict=True)]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as stream:
        stream.write_batch(pa.record_batch(arrays, schema=schema))
    return sink.getvalue().to_pybytes()
