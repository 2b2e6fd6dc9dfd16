"""Adapters: a raw row of a data set -> Comparison. A new data set is one file in this folder.

The file has two functions, `recognises(row) -> bool` and `adapt(row, prefix, labels=None) ->
Comparison`, and gets a line in `ADAPTERS` below. `adapt` reads the label with `labels.preferred`,
and raises ValueError for a row that it cannot read.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from cot_reward.errors import UserError
from cot_reward.records import Comparison
from cot_reward.rows.adapters import comparison, upstream
from cot_reward.rows.adapters.judged import JudgedRows
from cot_reward.rows.adapters.judged import recognises as is_judged
from cot_reward.rows.labels import FileLabels

# (row, prefix of its media paths below the media root) -> Comparison
Adapter = Callable[[dict[str, Any], str], Comparison]

# name -> (whether a row has the data set's form, adapter)
ADAPTERS: dict[str, tuple[Callable[[dict[str, Any]], bool], Callable[..., Comparison]]] = {
    "upstream": (upstream.recognises, upstream.adapt),
    "comparison": (comparison.recognises, comparison.adapt),
}


# Rows that this project wrote about comparisons; not a data set.
JUDGED = "judged"


def adapter_for(
    row: dict[str, Any],
    name: str | None,
    templates: Mapping[str, str] | None = None,
    labels: FileLabels | None = None,
) -> Adapter:
    """The named adapter, or the one that recognises the row. Raises UserError for neither.

    `templates` (task -> template) help to read judged rows, which are recognised under any name.
    `labels` are the labels of the file; those of judged rows are always 1 and 2.
    """
    known = (*ADAPTERS, JUDGED)
    if name is not None and name not in known:
        raise UserError(f"unknown --adapter '{name}'; known: {', '.join(known)}")
    if name == JUDGED or is_judged(row):
        return JudgedRows(templates or {}).adapt
    if name is not None:
        return partial(ADAPTERS[name][1], labels=labels)
    for recognises, adapter in ADAPTERS.values():
        if recognises(row):
            return partial(adapter, labels=labels)
    raise UserError(
        f"no adapter knows rows with the keys {sorted(row)}; scripts/prepare_data.py convert makes "
        f"comparisons of them (or name an adapter with --adapter: {', '.join(known)})"
    )
