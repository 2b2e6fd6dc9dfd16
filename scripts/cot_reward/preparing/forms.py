"""Forms of rows that need no column map, because they are known."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cot_reward.preparing.mapping import ColumnMap, RawPair
from cot_reward.rows.adapters import comparison, upstream
from cot_reward.rows.labels import NUMBERS, FileLabels, Meaning


@dataclass(frozen=True)
class Form:
    """A known form: the map of its rows, its task, and what its labels mean.

    `task` None: each row names its own, or --task does. `pair` is the column of the two candidates.
    """

    name: str
    pair: str
    columns: list[str]
    task: str | None = None
    meanings: Mapping[str, Meaning] = field(default_factory=lambda: dict(NUMBERS))


_UPSTREAM = Form(
    "upstream",
    "images",
    ["text=prompt", "first=images.0", "second=images.1", "label=conversations.1.value"],
    "image_generation",
    upstream.SENTENCES,
)
_OURS = ["text=text", "first=candidates.0", "second=candidates.1", "label=label"]


def known_form(row: Mapping[str, Any]) -> Form | None:
    """The form that a row has; None if it is not known."""
    if upstream.recognises(row):
        return _UPSTREAM
    if comparison.recognises(row):
        return Form(
            "comparison", "candidates", _OURS + (["context=context"] if row.get("context") else [])
        )
    return None


class FormReader:
    """Reads the comparisons of one file: by the given map, or by the form that its rows have."""

    def __init__(self, given: ColumnMap | None, labels: FileLabels) -> None:
        self._given, self._labels = given, labels
        self._maps: dict[tuple[str, ...], ColumnMap] = {}

    def pair(self, row: Mapping[str, Any]) -> tuple[RawPair, str | None]:
        """The comparison of a row, and its task where the form tells. Raises ValueError."""
        if self._given:
            return self._given.pair(row, self._labels), None
        form = known_form(row)
        if form is None:
            why = f"its columns are {', '.join(map(str, row)):.300}"
            if self._maps:
                raise ValueError(f"not of the form of the rows before it; {why}")
            raise UnknownFormError(
                f"{why}; say with --map where the comparison stands (scripts/prepare_data.py look "
                "FILE shows what there is)"
            )
        # Rows of ours have a context or none.
        key = tuple(form.columns)
        if key not in self._maps:
            self._maps[key] = ColumnMap(form.columns)
        candidates = row[form.pair]
        if not isinstance(candidates, list) or len(candidates) != 2:
            raise ValueError(f"'{form.pair}' must be a list of two")
        found = self._maps[key].pair(row, self._labels, form.meanings)
        named = row.get("task")
        return found, form.task or (named if isinstance(named, str) else None)


class UnknownFormError(ValueError):
    """The first row of a file has a form that is not known, and no map was given."""
