"""`check_rows.py --exclude`: the proof that rows are free of held-out comparisons."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cot_reward.rows.captions import FileCaptions
from cot_reward.rows.file_flags import held_out_files
from cot_reward.rows.held_out import HeldOut, keys_of, pictures_of, same_pictures_warning
from cot_reward.rows.validation import RowError

# Enough digits of a key to find its row by.
_SHOWN_DIGITS = 16


class HeldOutCheck:
    """Held-out files that rows are compared with. Raises UserError for a file that cannot be read.

    `roots` are as in `held_out_files`; paths of the checked rows are relative to `media_root`.
    """

    def __init__(self, exclude: Sequence[str], roots: Sequence[Path], media_root: Path) -> None:
        self._held_out = HeldOut(
            held_out_files(exclude, roots, media_root, media_root), media_root
        )  # fmt: skip

    def check(self, row: dict[str, Any], captions: Mapping[str, FileCaptions]) -> None:
        """Raise RowError for a row about a held-out comparison, or about one that nobody can tell.

        A row without a key is free when no held-out row is about its pictures.
        """
        pictures = pictures_of(row, "")
        try:
            keys = keys_of(row, "", captions)
        except ValueError as error:
            is_free = not self._held_out.files_with_pictures(pictures)
            if is_free and self._held_out.all_have_pictures:
                return
            raise RowError(
                f"whether it is about a held-out comparison cannot be told: {error}", "held_out"
            ) from None
        if files := self._held_out.look_up(keys, pictures):
            key = next(key for key in sorted(keys) if self._held_out.files_with([key]))
            raise RowError(
                f"it is about the held-out comparison {key[:_SHOWN_DIGITS]}... of "
                f"{', '.join(files)}; leave the row out",
                "held_out",
            )

    def unproved(self) -> Iterator[tuple[str, str]]:
        """(file, why rows cannot be proved to be free of it), once all rows are checked."""
        for name in self._held_out.doubts:
            if self._held_out.row_counts[name] and not self._held_out.met[name].comparisons:
                yield (
                    name,
                    "its images are not where its paths lead, so that none of its comparisons "
                    "could be found; say with --exclude-image-root what they are relative to",
                )

    def told(self) -> Iterator[str]:
        """What was found of each file, once all rows are checked."""
        for name, met in self._held_out.met.items():
            count = self._held_out.row_counts[name]
            yield (
                f"--exclude {name} ({count:,} rows): {met.comparisons:,} of its comparisons are "
                "among the rows"
            )

    def warnings(self) -> Iterator[str]:
        for name, met in self._held_out.met.items():
            if not self._held_out.row_counts[name]:
                yield f"warning: --exclude {name}: {self._held_out.doubts[name]}"
            if met.of_same_pictures:
                yield same_pictures_warning(name, met.of_same_pictures, "the rows")
