"""What is counted, in the form that Prometheus reads; no text and no address of a caller."""

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from cot_reward.reward.results import Failure, Judgement

# Seconds: from an answer out of a small model to the longest chain of thought.
_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640)
CONTENT_TYPE = CONTENT_TYPE_LATEST


class Metrics:
    """The metrics of one service; its names begin with cot_reward_."""

    def __init__(
        self,
        queued: Callable[[], float],
        working: Callable[[], float],
        encoded: Callable[[], float],
    ) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "cot_reward_requests", "Requests by page and outcome (ok, or the type of the error)",
            ["page", "outcome"], registry=registry,
        )  # fmt: skip
        self._seconds = Histogram(
            "cot_reward_request_seconds", "Seconds from the first byte of a request to its answer",
            ["page"], buckets=_BUCKETS, registry=registry,
        )  # fmt: skip
        self._comparisons = Counter(
            "cot_reward_comparisons", "Comparisons by outcome (ok, or the reason of the failure)",
            ["outcome"], registry=registry,
        )  # fmt: skip
        self._tokens = Counter(
            "cot_reward_tokens", "Tokens of the judgements, as the server counts them",
            ["kind"], registry=registry,
        )  # fmt: skip
        Gauge(
            "cot_reward_queued", "Requests that wait or are read", registry=registry
        ).set_function(queued)
        Gauge(
            "cot_reward_in_flight", "Requests that are worked on", registry=registry
        ).set_function(working)
        Gauge(
            "cot_reward_encoded_pictures",
            "Pictures that were decoded and encoded since the start",
            registry=registry,
        ).set_function(encoded)
        ProcessCollector(registry=registry)

    def request(self, page: str, outcome: str, seconds: float) -> None:
        self._requests.labels(page, outcome).inc()
        self._seconds.labels(page).observe(seconds)

    def comparison(self, found: Judgement | Failure) -> None:
        if isinstance(found, Failure):
            self._comparisons.labels(found.reason).inc()
            return
        self._comparisons.labels("ok").inc()
        self._tokens.labels("prompt").inc(found.prompt_tokens)
        self._tokens.labels("completion").inc(found.completion_tokens)

    def text(self) -> bytes:
        return bytes(generate_latest(self._registry))
