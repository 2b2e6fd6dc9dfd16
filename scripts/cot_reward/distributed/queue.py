"""Which share a worker asks next, and when a share or a worker is given up."""

from collections.abc import Iterable, Set
from dataclasses import dataclass


@dataclass
class _Share:
    failures: int = 0
    # The worker that failed last, for which the share is not the first choice any more.
    failed_at: int | None = None


class Queue:
    """The shares that are not finished. Workers have numbers.

    A share that got new responses before its worker died is no failure: however often workers die,
    the work goes on. After `attempts` failures in a row a share is given up, and so is a worker.
    """

    def __init__(self, shares: Iterable[int], workers: Iterable[int], attempts: int) -> None:
        self._attempts = attempts
        self._shares = {number: _Share() for number in shares}
        self._waiting = list(self._shares)
        self._failures = dict.fromkeys(workers, 0)
        self.given_up: dict[int, str] = {}

    @property
    def workers(self) -> Set[int]:
        """The workers that were not given up."""
        return self._failures.keys()

    @property
    def open(self) -> bool:
        """Whether a share waits, or is asked."""
        return bool(self._shares)

    @property
    def left(self) -> int:
        """Shares that are not finished, those that were given up among them."""
        return len(self._shares) + len(self.given_up)

    def take(self, worker: int) -> int | None:
        """The share that this worker asks now; None while another one should take what is left."""
        for number in self._waiting:
            if self._shares[number].failed_at != worker or len(self._failures) == 1:
                self._waiting.remove(number)
                return number
        return None

    def finished(self, share: int, worker: int) -> None:
        del self._shares[share]
        self._failures[worker] = 0

    def failed(self, share: int, worker: int, grew: bool, why: str) -> None:
        """`grew`: the share has got responses. `why`: what the user is told."""
        found = self._shares[share]
        if grew:
            found.failures, found.failed_at, self._failures[worker] = 0, None, 0
        else:
            found.failures, found.failed_at = found.failures + 1, worker
            self.worker_failed(worker)
        if found.failures < self._attempts:
            # First: the shares of a run should end together.
            self._waiting.insert(0, share)
        else:
            del self._shares[share]
            self.given_up[share] = why

    def worker_failed(self, worker: int) -> None:
        """A worker could not start, or brought its share no further."""
        self._failures[worker] += 1
        if self._failures[worker] >= self._attempts:
            del self._failures[worker]
