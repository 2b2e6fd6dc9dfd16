"""The requests of a run, round by round: a further round is asked as soon as it is known of."""

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence

from cot_reward.client.flow import LATER, Later
from cot_reward.client.wire import Outcome, Request
from cot_reward.inference.ledger import Listed
from cot_reward.inference.plan import Run


class Rounds:
    """Iterates over the requests of a run; further rounds come before further comparisons.

    So the rounds that wait follow from the last outcomes, and the concurrency bounds the memory.
    `answered` must be told of all outcomes, after the ledger.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._further: deque[Request] = deque()
        # (key, order) -> samples that are in flight, or about to be.
        self._open: Counter[tuple[str, str]] = Counter()

    def __iter__(self) -> Iterator[Request | Later | None]:
        for requests in self._run.rounds():
            while self._further:
                yield self._further.popleft()
            if requests is None:
                yield None
            else:
                self._count(requests)
                yield from requests
        while self._open:
            yield self._further.popleft() if self._further else LATER

    def _count(self, requests: Sequence[Request]) -> None:
        for request in requests if self._run.rule.sides else ():
            self._open[request.key, request.order] += request.count

    def answered(self, outcomes: Iterable[Outcome]) -> None:
        """Take in outcomes that the ledger has: the last of a round may lead to a further one."""
        for outcome in outcomes if self._run.rule.sides else ():
            request = outcome.request
            place = request.key, request.order
            self._open[place] -= request.count
            if not self._open[place]:
                del self._open[place]
                listed = Listed(request.key, "", request.comparison)
                requests = self._run.next_round(listed, request.order)
                self._count(requests)
                self._further.extend(requests)
