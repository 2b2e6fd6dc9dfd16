"""Captions in the prompts of one file of published rows, which name them nowhere else.

The key of a comparison depends on its caption, so that a caption is found exactly or not at all.
"""

from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from cot_reward.errors import UserError
from cot_reward.rows.reading import read_rows
from cot_reward.rows.wording import Wording, shared_wording
from cot_reward.tasks.generation import CAPTION_MARKER, caption_in

# Rows at the beginning of a file that show what its prompts have in common.
_ROWS_TO_COMPARE = 1000
_MIN_PROMPTS = 3


class FileCaptions:
    """Finds the caption in a prompt of a file: call it with the prompt.

    The caption follows the marker "Text Caption:". In prompts without this marker it is what
    differs between the file's first prompts, if it stands in quotation marks or brackets in all of
    them: without these nobody can tell the end of a caption from words that all captions share.
    `prompt_of` gives the prompt of a row, and raises anything for a row without one. The file is
    read again only when it is needed.
    """

    def __init__(self, path: Path, prompt_of: Callable[[dict[str, Any]], str]) -> None:
        self._path, self._prompt_of = path, prompt_of
        self._found: tuple[Wording | None, str] | None = None

    def __call__(self, prompt: str) -> str:
        """The caption. Raises ValueError for a prompt in which it cannot be found exactly."""
        if CAPTION_MARKER in prompt:
            return caption_in(prompt)
        if self._found is None:
            self._found = self._compare()
        wording, why = self._found
        if wording is not None:
            if caption := wording.caption_in(prompt):
                return caption
            why = wording.difference(prompt)
        raise ValueError(f"no caption: the prompt has no '{CAPTION_MARKER}', and {why}")

    def _compare(self) -> tuple[Wording | None, str]:
        """What the prompts without the marker share, or why this does not show captions."""
        prompts = list(dict.fromkeys(self._prompts()))
        if len(prompts) < _MIN_PROMPTS:
            return None, (
                f"its file has {len(prompts)} different prompts like it; {_MIN_PROMPTS} or more "
                "show what they share around a caption"
            )
        wording = shared_wording(prompts)
        if wording is None or not wording.closer:
            return None, (
                "the prompts of its file show no quotation marks or brackets around a caption; "
                f"put '{CAPTION_MARKER}' before the captions, or the key into each row's 'id'"
            )
        odd = next((prompt for prompt in prompts if wording.caption_in(prompt) is None), None)
        if odd is not None:
            return None, (
                f"the prompts of its file do not share one wording: {wording.difference(odd)}; put "
                "each wording into a file of its own"
            )
        return wording, ""

    def _prompts(self) -> list[str]:
        """The prompts without the marker at the beginning of the file; none of a pipe."""
        prompts: list[str] = []
        if not self._path.is_file():
            return prompts
        # A fault of the file, or of a row, is told where the row itself is read.
        with suppress(UserError):
            for _, row in islice(read_rows(self._path), _ROWS_TO_COMPARE):
                with suppress(ValueError, LookupError, TypeError, AttributeError, RecursionError):
                    if isinstance(row, dict) and CAPTION_MARKER not in (p := self._prompt_of(row)):
                        prompts.append(p)
        return prompts
