"""What a file of an unknown data set holds, so that a column map can be written in a minute."""

import reprlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from shlex import quote
from typing import Any

from cot_reward.errors import UserError
from cot_reward.media.embedded import embedded
from cot_reward.media.images import IMAGE_ENDINGS
from cot_reward.media.video import VIDEO_ENDINGS
from cot_reward.preparing.forms import known_form
from cot_reward.preparing.mapping import CONSTANT, column, opened
from cot_reward.preparing.settings import LookSettings
from cot_reward.preparing.tables import read_table
from cot_reward.settings import read_yaml, shipped
from cot_reward.store import dump

# Column maps of published data sets that come with the project.
MAPS = Path("configs/data")
_ROWS_SHOWN = 3
_MOST_VALUES = 8
_MOST_LIST_ENTRIES = 4


@dataclass
class _Column:
    """A column, or a place in one: its types, values (while they are few) and first example."""

    types: Counter[str] = field(default_factory=Counter)
    values: Counter[str] | None = field(default_factory=Counter)
    example: Any = None

    def add(self, value: Any) -> None:
        self.types[_type(value)] += 1
        if self.example is None:
            self.example = value
        if self.values is not None:
            is_small = isinstance(value, str | int | float | bool) and len(str(value)) <= 80
            if not is_small or len(self.values) > _MOST_VALUES:
                self.values = None
            else:
                self.values[str(value)] += 1

    @property
    def may_be_label(self) -> bool:
        return self.values is not None and 2 <= len(self.values) <= _MOST_VALUES


def look(settings: LookSettings) -> int:
    """Print columns, rows, labels and what reads them; returns the exit code. Raises UserError."""
    for file in settings.files:
        _look_at(file, settings.rows)
    return 0


def _look_at(file: Path, most: int) -> None:
    rows = []
    broken = 0
    for _, row in islice(read_table(file), most):
        if isinstance(row, ValueError):
            broken += 1
        else:
            rows.append(row)
    if not rows:
        raise UserError(f"{file}: none of its first {broken} rows can be read")
    columns: dict[str, _Column] = {}
    for row in rows:
        for name, value in _places(row):
            columns.setdefault(name, _Column()).add(value)
    print(
        f"{file}: {len(rows):,} rows read" + (f", {broken:,} that cannot be read" if broken else "")
    )
    width = min(max(map(len, columns), default=0), 40)
    for name, found in columns.items():
        kinds = ", ".join(kind for kind, _ in found.types.most_common())
        missing = len(rows) - found.types.total()
        gaps = f" (missing in {missing:,})" if missing else ""
        shown = _values(found) if found.may_be_label else _short(found.example)
        print(f"  {_printable(name):<{width}}  {kinds}{gaps}: {shown}")
    for number, row in enumerate(rows[:_ROWS_SHOWN], 1):
        print(f"row {number}: {_short(_without_media(row), 400)}")
    print(*map(_printable, _readers(file, rows, columns)), sep="\n")


def _places(row: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The columns of a row by the names that --map takes, those inside objects and lists, too."""
    for name, value in row.items():
        yield from _inside(str(name), value, 2)


def _inside(name: str, value: Any, depth: int) -> Iterator[tuple[str, Any]]:
    if value is None:
        return
    value = opened(value) if depth else value
    if depth and _is_plain_object(value):
        for key, item in value.items():
            yield from _inside(f"{name}.{key}", item, depth - 1)
    elif depth and isinstance(value, list) and 0 < len(value) <= _MOST_LIST_ENTRIES:
        for at, item in enumerate(value):
            yield from _inside(f"{name}.{at}", item, depth - 1)
    else:
        yield name, value


def _is_plain_object(value: Any) -> bool:
    return isinstance(value, Mapping) and "bytes" not in value


def _type(value: Any) -> str:
    try:
        data = embedded(value)
    except ValueError:
        data = None
    if data is not None:
        return (
            f"medium in the row ({len(data):,} bytes)" if not isinstance(value, str) else "base64"
        )
    if isinstance(value, str):
        ending = Path(value[-200:]).suffix.lower()
        if "\n" not in value and ending in IMAGE_ENDINGS:
            return "path of an image"
        return "path of a video" if "\n" not in value and ending in VIDEO_ENDINGS else "text"
    if isinstance(value, list):
        return f"list of {len(value)}"
    return type(value).__name__


def _values(found: _Column) -> str:
    assert found.values is not None
    return ", ".join(f"{_printable(value)} ({n:,})" for value, n in found.values.most_common())


def _without_media(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _type(v) if _holds_bytes(v) else v for name, v in row.items()}


def _holds_bytes(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_holds_bytes, value.values()))
    if isinstance(value, list):
        return any(map(_holds_bytes, value))
    return isinstance(value, bytes)


def _short(value: Any, most: int = 90) -> str:
    if isinstance(value, bytes | bytearray):
        return f"{len(value):,} bytes"
    try:
        text = value if isinstance(value, str) else dump(value)
    except (TypeError, ValueError):
        text = reprlib.repr(value)
    text = _printable(" ".join(text[: 4 * most].split()))
    return text if len(text) <= most else text[:most] + "..."


def _printable(text: str) -> str:
    """Text of a file for a terminal: control characters as escapes."""
    return text if text.isprintable() else "".join(
        c if c.isprintable() else repr(c)[1:-1] for c in text
    )  # fmt: skip


# --- what reads it --------------------------------------------------------------------------------


def _readers(
    file: Path, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, _Column]
) -> Iterator[str]:
    """Lines that say how the file can be converted."""
    command = f"python scripts/prepare_data.py convert {quote(str(file))}"
    form = known_form(rows[0])
    if form:
        yield f"form: {form.name}, which needs no map:"
        yield f"  {command}"
        return
    fitting = {path: pairs for path in _maps() if (pairs := _fitting(path, rows[0]))}
    for path, pairs in fitting.items():
        always = (
            " if the first candidate is the better one in every row" if _is_constant(pairs) else ""
        )
        yield f"fits {path}{always}:"
        yield f"  {command} --config {path}"
    candidates = [name for name, found in columns.items() if found.may_be_label]
    if fitting and not (candidates and any(map(_is_constant, fitting.values()))):
        return
    if not fitting:
        yield "no known form and no map of configs/data/ fits"
    yield "a map of your own may begin with:"
    guess = _guess(columns)
    guessed = " ".join(quote(f"{target}={source}") for target, source in guess.items())
    yield f"  {command} --task TASK --map {guessed}"
    label = columns.get(guess["label"])
    if label and label.may_be_label and label.values and set(label.values) != {"1", "2"}:
        flags = " ".join(quote(f"{value}=?") for value in label.values)
        yield f"  --labels {flags}   (each ? is 1, 2, tie or bad)"
    if candidates:
        yield f"columns of few values, among which the label may be: {', '.join(candidates)}"


def _maps() -> list[Path]:
    folder = shipped(MAPS)
    return sorted(folder.glob("*.yaml")) if folder.is_dir() else []


def _fitting(path: Path, row: Mapping[str, Any]) -> list[str]:
    """The map of a file, if the row has every column that it names; else an empty list."""
    pairs: list[str] = read_yaml(path)["map"]
    try:
        for pair in pairs:
            column(pair.partition("=")[2])(row)
    except ValueError:
        return []
    return pairs


def _is_constant(pairs: Sequence[str]) -> bool:
    return any(pair.startswith(f"label={CONSTANT}") for pair in pairs)


def _guess(columns: Mapping[str, _Column]) -> dict[str, str]:
    """Columns that may hold a comparison, by their types and names; COLUMN where none does."""
    media = [
        name
        for name, found in columns.items()
        if any("path of" in kind or "medium" in kind or kind == "base64" for kind in found.types)
    ]
    texts = [
        name
        for name, found in columns.items()
        if set(found.types) == {"text"} and name not in media
    ]
    named = [name for name in texts if any(w in name for w in ("prompt", "caption", "instruct"))]
    few = [name for name, found in columns.items() if found.may_be_label]
    labels = [n for n in few if any(w in n for w in ("label", "pref", "choice", "win", "better"))]
    first, second = (*media, "COLUMN", "COLUMN")[:2]
    return {
        "text": (*named, *texts, "COLUMN")[0],
        "first": first,
        "second": second,
        "label": (*labels, *few, "COLUMN")[0],
    }
