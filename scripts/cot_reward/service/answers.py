"""From what the reward model found to what a caller gets."""

from typing import Any

from cot_reward.reward.results import Failure, Judgement, Ranking
from cot_reward.service.refusals import Refusal

# Failures that the caller can mend: the request itself is at fault.
_BAD_REQUEST = frozenset({
    "missing", "corrupt", "empty", "too_large", "not_an_image", "lfs_pointer", "metadata",
    "bad_text", "same_candidates", "bad_media", "refused",
})  # fmt: skip
# Seconds after which a server that is out may be back.
SERVER_RETRY_SECONDS = 5


def refusal(failure: Failure) -> Refusal:
    """The error that a failure is."""
    texts = tuple(vote.text for vote in failure.votes)
    if failure.reason in _BAD_REQUEST:
        return Refusal(422, failure.reason, failure.detail)
    if failure.reason == "deadline":
        return Refusal(504, failure.reason, failure.detail)
    if failure.reason == "server_gone":
        return Refusal(503, failure.reason, failure.detail, SERVER_RETRY_SECONDS)
    return Refusal(502, failure.reason, failure.detail, texts=texts)


def judgement_fields(found: Judgement | Failure, texts: bool) -> dict[str, Any]:
    """The JSON of a judgement. Raises Refusal for a failure."""
    if isinstance(found, Failure):
        raise refusal(found)
    return _with_votes(found.as_dict(), texts)


def ranking_fields(found: Ranking, texts: bool) -> dict[str, Any]:
    """The JSON of a ranking.

    Raises Refusal where a candidate is at fault, and where no candidate has a strength.
    """
    for number, failure in sorted(found.failures.items()):
        if failure.reason in _BAD_REQUEST:
            raise Refusal(422, failure.reason, f"candidates[{number}]: {failure.detail}")
    if found.best is None:
        raise refusal(next(iter(found.failures.values())))
    fields = found.as_dict()
    for comparison in fields["comparisons"]:
        comparison["result"] = _with_votes(comparison["result"], texts)
    return fields


def _with_votes(fields: dict[str, Any], texts: bool) -> dict[str, Any]:
    if not texts:
        fields.pop("votes", None)
    return fields
