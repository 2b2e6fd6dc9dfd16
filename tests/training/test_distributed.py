"""Work is split evenly over processes."""

import pytest
from cot_reward.training.distributed import split_evenly


@pytest.mark.parametrize(("rows", "processes"), [(1, 8), (3, 8), (8, 8), (11, 2), (5, 4)])
def test_every_process_has_as_many_rows(rows: int, processes: int) -> None:
    parts = split_evenly(list(range(rows)), processes)
    assert len(parts) == processes
    assert len({len(part) for part in parts}) == 1
    assert {row for part in parts for row in part} == set(range(rows))
    assert sum(map(len, parts)) < rows + processes
