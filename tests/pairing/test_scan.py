"""How input is divided for the first pass and for the sort after it."""

import os

import pytest
from cot_reward.errors import UserError
from cot_reward.pairing.allowed_texts import Admission
from cot_reward.pairing.engine.database import Engine
from cot_reward.pairing.engine.scan import parts_of

ADMISSION = Admission(frozenset(), frozenset(), frozenset())


@pytest.mark.parametrize(
    ("memory", "threads", "buckets"),
    [(2**40, 4, 1), (2**28, 2, 1), (2**27, 2, 2), (2**27, 4, 3), (1, 4, 3)],
)
def test_less_is_sorted_together_with_less_memory_or_more_threads(
    tmp_path, memory, threads, buckets
):
    path = tmp_path / "rows.jsonl"
    path.write_text(("x" * (2**20 - 1) + "\n") * 40)
    parts = parts_of([(path, True)], tmp_path, "", ADMISSION, memory, threads)
    assert {part.buckets for part in parts} == {buckets}


def test_more_input_has_larger_parts_and_buckets_and_no_more_of_them(tmp_path):
    """Else the number of shards on disk would grow with the square of the input."""
    path = tmp_path / "rows.jsonl"
    # A file with a hole: its size counts, its rows are not read here.
    path.write_text('{"id": ""}\n')
    for size in (2**34, 2**36):
        os.truncate(path, size)
        parts = parts_of([(path, True)], tmp_path, "", ADMISSION, 2**29, 2)
        assert (len(parts), parts[0].buckets) == (256, min(size // 2**27 + 1, 256))
        assert (parts[0].start, parts[-1].end) == (0, size)
    os.truncate(path, 2**40)
    with pytest.raises(UserError, match=r"1,099.5 GB .*--memory"):
        parts_of([(path, True)], tmp_path, "", ADMISSION, 2**29, 2)


@pytest.mark.parametrize(
    ("memory", "size"), [("500MB", 5e8), ("64MiB", 2**26), ("3GB", 3e9), ("99999TB", 9.9999e16)]
)
def test_the_memory_of_the_database_is_known_in_bytes(tmp_path, memory, size):
    with Engine(tmp_path, memory, 1) as engine:
        assert engine.memory == pytest.approx(size, rel=0.04)
