"""What a share's summary.json must have before anything of it is used."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from cot_reward.errors import UserError


def _counted(value: Any) -> Any:
    """A number, or numbers by name, or these by name again. Raises ValueError."""
    if isinstance(value, dict):
        return {name: _counted(one) for name, one in value.items()}
    if type(value) is not int:
        raise ValueError("no number")
    return value


Count: TypeAlias = Annotated[Any, BeforeValidator(_counted)]
Counts: TypeAlias = dict[str, Count]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True)


class _File(_Strict):
    file: str
    side: str
    comparisons: Count
    shared: Count
    bytes: Count
    rows: Count
    without_key: Count
    of_other_shares: Count


class _HeldOutFile(_Strict):
    file: str
    digest: str


class _Settings(_Strict):
    seed: Count
    correct: list[str]
    incorrect: list[str]


class _Summary(_Strict):
    contradictory_comparisons: Count
    pairs: Count
    comparisons: Count
    chosen_longer: Count
    rejected_longer: Count
    same_model: Count
    cross_model: Count
    pairs_before_balancing: Count
    correct_side: Counts
    incorrect_side: Counts
    excluded_comparisons: Counts
    same_pictures_as_excluded: Counts
    presentations: Counts
    pass_rates: Counts
    chosen_answer: Counts
    pair_kinds: Counts
    by_source: Counts
    balancing: Counts
    rejected_from_first_pass: Count | None
    right_rows_of_trained_model: Count | None
    settings: _Settings
    files: list[_File]
    held_out_files: list[_HeldOutFile]
    sha256: dict[str, str]
    template_hashes: dict[str, list[str]]
    trained_model: str | None
    judge_version: int | str
    versions: dict[str, Any]
    seconds: float


def check_summary(summary: Mapping[str, Any], path: Path) -> None:
    """Raise UserError for a summary without something that a merge of today writes there.

    A summary of an older version of the merger has not all of it.
    """
    try:
        _Summary.model_validate(summary)
    except ValidationError as error:
        name = error.errors(include_url=False)[0]["loc"][0]
        raise UserError(
            f"{path}: has no '{name}' as the merger writes it now: an older version merged this "
            "share, or the file was changed; merge this share anew"
        ) from None
