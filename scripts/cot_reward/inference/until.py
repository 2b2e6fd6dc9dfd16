"""When a comparison in one order has been asked enough: the rule of `--until`, pure.

Samples are asked in rounds of `--first`, up to `--num-samples`. A round is asked completely or not
at all. So what is asked follows from the texts alone, also after a kill. Both orders of a
comparison are asked by themselves: a pair needs a right and a wrong text in the same order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from cot_reward.inference.ledger import Side, Unit
from cot_reward.inference.settings import InferenceSettings
from cot_reward.records import Verdict


class State(NamedTuple):
    """How far a comparison in one order is.

    missing: the samples to ask now
    failed: a unit for each sample that failed, and for each that is not asked because of a failure
    settled: samples that are not needed
    passed_over: samples without any outcome that this start will not ask
    """

    missing: list[int]
    failed: list[Unit]
    settled: int = 0
    passed_over: int = 0


@dataclass(frozen=True)
class Rule:
    """Ask rounds of `first` samples, up to `samples`, until there is a text of each of `sides`.

    Without `sides` there is one round with all samples. A text with a finding outside `coherence`
    is of no side, because the merger would not take it.
    """

    sides: frozenset[Side]
    first: int
    samples: int
    coherence: frozenset[str]

    @classmethod
    def of(cls, settings: InferenceSettings) -> "Rule":
        samples, sides = settings.num_samples, settings.wanted_sides
        coherence = frozenset(settings.until_coherence)
        return cls(sides, settings.first if sides else samples, samples, coherence)

    def side(self, verdict: Verdict) -> Side:
        """The side of a pair that a text with this verdict can be on; "": of none."""
        if verdict.coherence not in self.coherence:
            return ""
        return "right" if verdict.verdict == "correct" else "wrong"

    def state(self, units: Sequence[Unit], retry_before: int = 0) -> State:
        """How far a comparison in one order is, which has these units.

        Failures that stand before this byte of the journal are asked again. Another round in which
        everything failed would most likely fail, too: such a failure stands for all later samples.
        """
        known = {unit.sample: unit for unit in units}
        answered = {unit.sample for unit in units if not unit.failed}
        failed: list[Unit] = []
        found: set[Side] = set()
        for start in range(0, self.samples, self.first):
            if self.sides and self.sides <= found:
                rest = [n for n in range(start, self.samples) if n not in answered]
                return State([], failed, len(rest), sum(n not in known for n in rest))
            end = min(start + self.first, self.samples)
            there = [known[n] for n in range(start, end) if n in known]
            failures = [unit for unit in there if unit.failed]
            failed += failures
            again = {unit.sample for unit in failures if unit.offset < retry_before}
            if missing := [n for n in range(start, end) if n not in known or n in again]:
                return State(missing, failed)
            if len(failures) == len(there):
                rest = [n for n in range(end, self.samples) if n not in answered]
                failed += [known.get(n, failures[-1]._replace(sample=n)) for n in rest]
                return State([], failed, passed_over=sum(n not in known for n in rest))
            found.update(unit.side for unit in there)
        return State([], failed)
