"""From what the reward model found to what a caller gets."""

import re
from typing import Any, get_args

from cot_reward.media.paths import Reason
from cot_reward.reward.question import CONTEXT
from cot_reward.reward.results import Failure, Judgement, Ranking
from cot_reward.service.refusals import RefusalError

# Failures that the caller can mend: a picture, or the request itself is at fault.
_BAD_PICTURE = frozenset(get_args(Reason))
_BAD_REQUEST = _BAD_PICTURE | {"bad_text", "same_candidates", "bad_media", "refused"}
# What a server says of a request that it cannot work on. Other refusals (no access, no such page)
# are between this service and the server.
_REQUEST_REFUSED = re.compile("HTTP (400|413|422)\\b")
# Seconds after which a server that is out may be back.
SERVER_RETRY_SECONDS = 5


def refusal(failure: Failure, texts: bool) -> RefusalError:
    """The error that a failure is; `texts`: with the chains of thought."""
    written = tuple(vote.text for vote in failure.votes) if texts else ()
    if failure.reason == "refused" and not _REQUEST_REFUSED.match(failure.detail):
        return RefusalError(502, failure.reason, failure.detail)
    if failure.reason in _BAD_REQUEST:
        return RefusalError(422, failure.reason, failure.detail)
    if failure.reason == "deadline":
        return RefusalError(504, failure.reason, failure.detail)
    if failure.reason == "server_gone":
        return RefusalError(503, failure.reason, failure.detail, SERVER_RETRY_SECONDS)
    return RefusalError(502, failure.reason, failure.detail, texts=written)


def judgement_fields(found: Judgement | Failure, texts: bool) -> dict[str, Any]:
    """The JSON of a judgement. Raises RefusalError for a failure."""
    if isinstance(found, Failure):
        raise refusal(found, texts)
    return _with_votes(found.as_dict(), texts)


def ranking_fields(found: Ranking, texts: bool) -> dict[str, Any]:
    """The JSON of a ranking.

    A text that cannot be used is one of its failures: what a policy writes may be empty. Raises
    RefusalError for a bad picture, and where nothing was judged.
    """
    for number, failure in sorted(found.failures.items()):
        if failure.reason in _BAD_PICTURE:
            # A fault of the context is that of all candidates.
            where = "" if failure.detail.startswith(CONTEXT) else f"candidates[{number}]: "
            raise RefusalError(422, failure.reason, where + failure.detail)
    results = [one for _, _, one in found.comparisons]
    failures = [*found.failures.values(), *(one for one in results if isinstance(one, Failure))]
    if found.best is None or (results and not any(results)):
        # Without a single judgement no order means anything.
        raise refusal(failures[0], texts)
    fields = found.as_dict()
    for failure in fields["failures"].values():
        _with_votes(failure, texts)
    for comparison in fields["comparisons"]:
        comparison["result"] = _with_votes(comparison["result"], texts)
    return fields


def _with_votes(fields: dict[str, Any], texts: bool) -> dict[str, Any]:
    if not texts:
        fields.pop("votes", None)
    return fields
