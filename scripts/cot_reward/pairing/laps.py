"""How long the parts of a merge took, so that a run of hours tells where its time went."""

import time


class Laps:
    """A stop watch; `seconds` has the parts that have ended, by name."""

    def __init__(self) -> None:
        self._started = self._ended = time.monotonic()
        self.seconds: dict[str, float] = {}

    def end(self, part: str) -> None:
        """End a part, which began where the part before it ended."""
        now = time.monotonic()
        self.seconds[part] = round(now - self._ended, 2)
        self._ended = now

    def total(self) -> float:
        return round(time.monotonic() - self._started, 2)
