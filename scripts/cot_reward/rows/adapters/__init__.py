"""Adapters: a raw row of some data set -> Comparison. A new data set is one file of this folder.

Such a file has two functions, `recognises(row) -> bool` and `adapt(row, prefix) -> Comparison`, and
a line in `ADAPTERS` below.
"""

from collections.abc import Callable
from typing import Any

from cot_reward.errors import UserError
from cot_reward.records import Comparison
from cot_reward.rows.adapters import comparison, upstream

# (row, what leads from the media root to what its paths are relative to) -> Comparison
Adapter = Callable[[dict[str, Any], str], Comparison]

# name -> (does this row look like one?, adapter)
ADAPTERS: dict[str, tuple[Callable[[dict[str, Any]], bool], Adapter]] = {
    "upstream": (upstream.recognises, upstream.adapt),
    "comparison": (comparison.recognises, comparison.adapt),
}


def adapter_for(row: dict[str, Any], name: str | None) -> Adapter:
    """The named adapter, or the one that recognises the row. Raises UserError for neither."""
    if name is not None:
        if name not in ADAPTERS:
            raise UserError(f"unknown --adapter '{name}'; known: {', '.join(ADAPTERS)}")
        return ADAPTERS[name][1]
    for recognises, adapter in ADAPTERS.values():
        if recognises(row):
            return adapter
    raise UserError(
        f"no adapter knows rows with the keys {sorted(row)}; name "
        f"one with --adapter ({', '.join(ADAPTERS)}) or add one in scripts/cot_reward/rows/adapters/"
    )
