"""The lines of a run's journal: one for each response, one for each request that failed.

Every line has `key` (of the comparison), `order`, `ascending` (see `ledger`), `run` (the run's
hash) and `template` (the template's hash).
A response adds `sample`, `text`, `seed` (of its request), `finish_reason` and `model`, and
`restored` where its text was put back together, `probability` where it is known (see
`records.Response`). The first response of a
request adds `prompt_tokens`, `completion_tokens` and `retries` of the request.
A failure adds `first` and `count` (the samples that the request asked for), `reason`, `detail` and
`retries`.
"""

import re
from collections.abc import Mapping
from typing import Any

from cot_reward.client.wire import Outcome
from cot_reward.inference.ledger import is_ascending

_COMMON = {"key": str, "order": str, "ascending": bool, "run": str, "template": str}
_RESPONSE = {"sample": int, "text": str, "finish_reason": str, "model": str}
_FAILURE = {"first": int, "count": int, "reason": str, "detail": str}


def check_line(entry: Mapping[str, Any]) -> None:
    """Raises ValueError unless an entry has what is read of every line of a journal."""
    wanted = _COMMON | (_FAILURE if "reason" in entry else _RESPONSE)
    for name, kind in wanted.items():
        if not isinstance(entry.get(name), kind):
            raise ValueError(f"its {name} is {entry.get(name)!r:.60}")
    if not re.fullmatch("[0-9a-f]{64}", entry["key"]):
        raise ValueError(f"its key is {entry['key']!r:.80}")


def journal_lines(
    outcome: Outcome, run_hash: str, template_hashes: Mapping[str, str]
) -> list[dict[str, Any]]:
    """The lines of a request's outcome. `template_hashes`: task -> hash."""
    request = outcome.request
    common = {
        "key": request.key, "order": request.order,
        "ascending": is_ascending(request.comparison, request.order),
        "run": run_hash, "template": template_hashes[request.comparison.task],
    }  # fmt: skip
    if outcome.reason:
        failure = {"first": request.first, "count": request.count, "reason": outcome.reason,
                   "detail": outcome.detail, "retries": outcome.retries}  # fmt: skip
        return [common | failure]
    lines = [
        common | {"sample": response.sample, "text": response.text, "seed": request.seed,
                  "finish_reason": response.finish_reason, "model": response.model}
        | ({"restored": response.restored} if response.restored else {})
        | ({} if response.probability is None else {"probability": response.probability})
        for response in outcome.responses
    ]  # fmt: skip
    # The server counts tokens per request.
    lines[0] |= {
        "prompt_tokens": outcome.prompt_tokens,
        "completion_tokens": outcome.completion_tokens,
        "retries": outcome.retries,
    }
    return lines
