"""The comparisons of files that the client can read, for the commands that look at all of them."""

import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tqdm import tqdm

from cot_reward.media.paths import media_prefix
from cot_reward.preparing.settings import ComparisonFiles
from cot_reward.records import Comparison
from cot_reward.rows.comparisons import ComparisonReader
from cot_reward.rows.labels import FileLabels, TieError, parse_meanings
from cot_reward.rows.reading import read_rows

_WORD = re.compile(r"\w+")


@dataclass
class RowCounts:
    rows: int = 0
    ties: int = 0
    bad: int = 0


def labelled(
    settings: ComparisonFiles, counts: RowCounts, note_bad: Callable[[str, str], object]
) -> Iterator[tuple[int, str, Comparison]]:
    """Number of the file, place and comparison of each row, their media unread.

    A bad row is given to `note_bad`, with its place and why. Raises UserError for a file that
    cannot be read, and for labels of no known meaning.
    """
    prefix = media_prefix(settings.image_root or settings.media_root, settings.media_root)
    for source, file in enumerate(settings.files):
        labels = FileLabels(parse_meanings(settings.labels))
        reader = ComparisonReader(prefix, labels, settings.task)
        for number, row in tqdm(read_rows(file), file.name, unit=" rows", disable=None):
            counts.rows += 1
            where = f"{file}:{number}"
            try:
                if isinstance(row, ValueError):
                    raise row
                comparison = reader.comparison(row)
            except TieError:
                continue
            except ValueError as error:
                counts.bad += 1
                note_bad(where, str(error))
                continue
            yield source, where, comparison
        labels.check(file)
        counts.ties += labels.ties


def words_of(text: str) -> str:
    """The words of a text, whatever their case, punctuation and form of characters."""
    return " ".join(_WORD.findall(unicodedata.normalize("NFKC", text).casefold()))
