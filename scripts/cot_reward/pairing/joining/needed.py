"""What a share's summary.json must have before anything of it is used."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cot_reward.errors import UserError


def _is_count(value: Any) -> bool:
    """A number, or numbers by name, or these by name again."""
    if isinstance(value, dict):
        return all(map(_is_count, value.values()))
    return isinstance(value, int) and not isinstance(value, bool)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _or_none(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or holds(value)


def _is_mapping_of(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(map(holds, value.values()))


def _is_list_of(wanted: Mapping[str, Callable[[Any], bool]]) -> Callable[[Any], bool]:
    return lambda value: (
        isinstance(value, list)
        and all(isinstance(entry, dict) and _missing(entry, wanted) is None for entry in value)
    )


def _missing(found: Mapping[str, Any], wanted: Mapping[str, Callable[[Any], bool]]) -> str | None:
    """The first name without a value of its kind; None: there is none."""
    for name, holds in wanted.items():
        if name not in found or not holds(found[name]):
            return name
    return None


_is_counts = _is_mapping_of(_is_count)
_COUNTED = (
    "contradictory_comparisons", "pairs", "comparisons", "chosen_longer", "rejected_longer",
    "same_model", "cross_model", "pairs_before_balancing",
)  # fmt: skip
_COUNTED_BY_NAME = (
    "correct_side", "incorrect_side", "excluded_comparisons", "same_pictures_as_excluded",
    "presentations", "pass_rates", "chosen_answer", "pair_kinds", "by_source", "balancing",
)  # fmt: skip
_FILE = {
    **dict.fromkeys(("file", "side"), _is_text),
    **dict.fromkeys(
        ("comparisons", "shared", "bytes", "rows", "without_key", "of_other_shares"), _is_count
    ),
}
_SETTINGS = {"seed": _is_count, "correct": _is_texts, "incorrect": _is_texts}
_SUMMARY: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(_COUNTED, _is_count),
    **dict.fromkeys(_COUNTED_BY_NAME, _is_counts),
    **dict.fromkeys(
        ("rejected_from_first_pass", "right_rows_of_trained_model"), _or_none(_is_count)
    ),
    "settings": lambda value: isinstance(value, dict) and _missing(value, _SETTINGS) is None,
    "files": _is_list_of(_FILE),
    "held_out_files": _is_list_of({"file": _is_text, "digest": _is_text}),
    "sha256": _is_mapping_of(_is_text),
    "template_hashes": _is_mapping_of(_is_texts),
    "trained_model": _or_none(_is_text),
    "judge_version": lambda value: value is not None,
    "versions": lambda value: isinstance(value, dict),
    "seconds": lambda value: isinstance(value, int | float),
}


def check_summary(summary: Mapping[str, Any], path: Path) -> None:
    """Raise UserError for a summary without something that a merge of today writes there.

    A summary of an older version of the merger has not all of it.
    """
    if (name := _missing(summary, _SUMMARY)) is not None:
        raise UserError(
            f"{path}: has no '{name}' as the merger writes it now: an older version merged this "
            "share, or the file was changed; merge this share anew"
        )
