"""What a reward model answers: a judgement, a failure, or a ranking. All are plain values."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

from cot_reward.records import ORDERS, Order

# Of the first candidate and of the second.
Both = tuple[float, float]


@dataclass(frozen=True)
class Vote:
    """One text of the model, and what the judge found in it.

    order: the presentation; "swapped" showed the second candidate first
    answer: 1 | 2, the better candidate in the caller's order whatever the presentation, 0: none
    verdict: parsed | unparsed | truncated
    coherence: the judge's finding: coherent, no_totals, tie, contradicts, wrong_sum; "" if unparsed
    scores: dimension -> the scores of first and second, in the caller's order, as the text has them
    total: the totals that the text states, in the caller's order; None where it states none
    """

    order: Order
    answer: int
    verdict: Literal["parsed", "unparsed", "truncated"]
    coherence: str
    text: str
    scores: Mapping[str, Both] = field(default_factory=dict)
    total: Both | None = None


@dataclass(frozen=True)
class Judgement:
    """Which of two candidates is better.

    answer: 1 | 2, the better candidate; 0: the votes are even
    probability: the share of the readable votes for the first candidate, the mean of both orders
    consistent: votes of all asked orders could be read, and their answers are the same
    scores: dimension -> mean scores of first and second, over the votes that state them
    totals: likewise the mean totals; None where no vote states them
    votes: all of them, those that cannot be read among them
    """

    answer: int
    probability: float
    consistent: bool
    scores: Mapping[str, Both]
    totals: Both | None
    votes: tuple[Vote, ...]
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def confidence(self) -> float:
        """The share of the votes for the answer: 0.5 to 1."""
        return max(self.probability, 1 - self.probability)

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts of the votes. They are a model's words: untrusted."""
        return tuple(vote.text for vote in self.votes)

    @property
    def readable(self) -> int:
        """How many votes have an answer."""
        return sum(vote.answer > 0 for vote in self.votes)

    @property
    def weight(self) -> float:
        """What it counts in a ranking: its readable votes of an order, the mean of the orders.

        The two orders of a vote ask the same thing, so that they count as one observation.
        """
        orders = {vote.order for vote in self.votes if vote.answer}
        return self.readable / len(orders) if orders else 0.0

    def swapped(self) -> "Judgement":
        """The same judgement with the candidates in the other order."""
        votes = [
            replace(
                vote,
                order="swapped" if vote.order == "given" else "given",
                answer=_other(vote.answer),
                scores=_turned(vote.scores),
                total=vote.total and vote.total[::-1],
            )
            for vote in self.votes
        ]
        return replace(
            self,
            answer=_other(self.answer),
            probability=1 - self.probability,
            scores=_turned(self.scores),
            totals=self.totals and self.totals[::-1],
            votes=tuple(sorted(votes, key=lambda vote: ORDERS.index(vote.order))),
        )

    def as_dict(self) -> dict[str, Any]:
        """In the types of JSON, with `confidence`."""
        return asdict(self) | {"confidence": self.confidence}

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> "Judgement":
        """What `as_dict` gave, also after a way through JSON."""
        values = {field.name: found[field.name] for field in fields(cls)}
        values["scores"] = _pairs(values["scores"])
        values["totals"] = values["totals"] and tuple(values["totals"])
        return cls(**values | {"votes": _votes(found)})


def _pairs(scores: Mapping[str, Any]) -> dict[str, Both]:
    return {name: (first, second) for name, (first, second) in scores.items()}


def _votes(found: Mapping[str, Any]) -> tuple[Vote, ...]:
    return tuple(
        Vote(
            **{
                **one,
                "scores": _pairs(one["scores"]),
                "total": one["total"] and tuple(one["total"]),
            }
        )
        for one in found["votes"]
    )


def _other(answer: int) -> int:
    return 3 - answer if answer else 0


def _turned(scores: Mapping[str, Both]) -> dict[str, Both]:
    return {name: (second, first) for name, (first, second) in scores.items()}


@dataclass(frozen=True)
class Failure:
    """Why there is no judgement; it counts as false.

    reason: of a picture missing, corrupt, empty, too_large, not_an_image, lfs_pointer, metadata; of
    the question bad_text, same_candidates, bad_media (a number or kind of pictures that the task
    does not have); of the server refused, attempts_used_up, deadline, server_gone; of the texts
    unparsed, truncated
    detail: a sentence
    votes: the texts, where the reason is that none of them can be read
    """

    reason: str
    detail: str
    votes: tuple[Vote, ...] = ()

    def __bool__(self) -> bool:
        return False

    def as_dict(self) -> dict[str, Any]:
        """In the types of JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> "Failure":
        """What `as_dict` gave, also after a way through JSON."""
        return cls(found["reason"], found["detail"], _votes(found))


@dataclass(frozen=True)
class Ranking:
    """Candidates, best first; all lists but `order` and `comparisons` are by candidate.

    order: the indices of all candidates, best first
    win_rates: the mean probability of a candidate in its comparisons
    strengths: Bradley-Terry, on the log scale: candidate i is better than j with the probability
        1 / (1 + exp(strength j - strength i)). Their mean is 0; with a reference its strength is 0
    low, high: 95% intervals of the strengths
    comparisons: (i, j, what came of it) with i shown first in the order "given"; with a reference
        j is -1
    failures: candidate -> why it has no strength; such a candidate is ranked last, with NaN

    Candidates of the same content are asked about once, and have the same values.
    """

    order: tuple[int, ...]
    win_rates: tuple[float, ...]
    strengths: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    comparisons: tuple[tuple[int, int, Judgement | Failure], ...]
    failures: Mapping[int, Failure]

    @property
    def best(self) -> int | None:
        """The index of the best candidate; None where no candidate has a strength."""
        first = self.order[0] if self.order else None
        return None if first is None or first in self.failures else first

    def as_dict(self) -> dict[str, Any]:
        """In the types of JSON, with `best`; a number that is not known is None."""
        from cot_reward.store import without_nan

        found = asdict(self) | {"best": self.best}
        found["comparisons"] = [
            {"first": i, "second": j, "result": found.as_dict()} for i, j, found in self.comparisons
        ]
        found["failures"] = {str(i): failure.as_dict() for i, failure in self.failures.items()}
        return dict(without_nan(found))
