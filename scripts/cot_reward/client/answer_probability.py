"""The probability of the answer "1" in a response, from the log-probs of its tokens."""

import math
import re
from collections.abc import Mapping
from typing import Any

# What a request asks for, so that the other answer is among the likeliest tokens.
LOGPROBS: dict[str, Any] = {"logprobs": True, "top_logprobs": 5}
# The last candidate that a text names is its answer, in every output form.
_ANSWER = re.compile(r"(?:Image|Video|Answer)\s*([12])(?!\d)")
_OTHER = {"1": "2", "2": "1"}


def probability_of_first(choice: Mapping[str, Any]) -> float | None:
    """The probability of "1" where the answer's number stands, given "1" or "2".

    None without log-probs, and for a text that names no candidate. Another answer that is not among
    the likeliest tokens has the probability 0. Raises what reading another shape raises.
    """
    tokens = ((choice.get("logprobs") or {}).get("content")) or []
    text = "".join(token["token"] for token in tokens)
    named = list(_ANSWER.finditer(text))
    if not named:
        return None
    digit, at = named[-1][1], named[-1].start(1)
    for token in tokens:
        word = token["token"]
        if at < len(word):
            other = word[:at] + _OTHER[digit] + word[at + 1 :]
            likely = {one["token"]: float(one["logprob"]) for one in token["top_logprobs"] or ()}
            own = math.exp(min(float(token["logprob"]), 0.0))
            against = math.exp(min(likely[other], 0.0)) if other in likely else 0.0
            if not own + against > 0:
                return None
            share = own / (own + against)
            return share if digit == "1" else 1 - share
        at -= len(word)
    return None
