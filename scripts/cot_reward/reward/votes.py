"""From the answers to both presentations of a comparison to a judgement about its candidates."""

from collections.abc import Sequence
from statistics import fmean

from cot_reward.client.wire import Outcome
from cot_reward.judge import judge, read_dimensions
from cot_reward.records import Form, Order, Response, Task
from cot_reward.reward.results import Both, Failure, Judgement, Vote


def vote_of(response: Response, order: Order, task: Task, form: Form) -> Vote:
    """What a text says of the candidates, in the caller's order."""
    # The label is of no use here: only which candidate the text names.
    verdict = judge(response.text, task, 1, response.finish_reason, form, mismatches=False)
    if not verdict.answer:
        cut = verdict.verdict == "truncated"
        return Vote(order, 0, "truncated" if cut else "unparsed", "", response.text)
    scores, total = read_dimensions(response.text, task, form)
    answer = verdict.answer
    if order == "swapped":
        answer = 3 - answer
        scores = {name: (second, first) for name, (first, second) in scores.items()}
        total = total and (total[1], total[0])
    return Vote(order, answer, "parsed", verdict.coherence, response.text, scores, total)


def judgement(outcomes: Sequence[Outcome], task: Task, form: Form) -> Judgement | Failure:
    """The judgement in the outcomes of one comparison, or why there is none.

    A request without an answer is a failure, whatever the other one says: one order alone leans to
    a position. A text that cannot be read is a vote that does not count.
    """
    for outcome in outcomes:
        if outcome.reason:
            return Failure(outcome.reason, outcome.detail)
    votes = tuple(
        vote_of(response, outcome.request.order, task, form)
        for outcome in outcomes
        for response in outcome.responses
    )
    answers: dict[Order, list[int]] = {}
    for vote in votes:
        if vote.answer:
            answers.setdefault(vote.order, []).append(vote.answer)
    if not answers:
        cut = sum(vote.verdict == "truncated" for vote in votes)
        if cut == len(votes):
            detail = f"all {cut} texts were cut off; raise max_tokens"
            return Failure("truncated", detail, votes)
        detail = f"none of {len(votes)} texts has an answer that can be read ({cut} were cut off)"
        return Failure("unparsed", detail, votes)
    # Exact, so that an even vote is exactly a half.
    shares = {order: found.count(1) / len(found) for order, found in answers.items()}
    probability = fmean(shares.values())
    asked = {vote.order for vote in votes}
    sides = {_side(share) for share in shares.values()}
    names = dict.fromkeys(name for vote in votes for name in vote.scores)
    spelled: dict[str, str] = {}
    for name in names:
        spelled.setdefault(name.casefold(), name)
    return Judgement(
        answer=_side(probability),
        probability=probability,
        consistent=set(answers) == asked and len(sides) == 1,
        scores={
            name: _mean(
                [
                    both
                    for vote in votes
                    for stated, both in vote.scores.items()
                    if stated.casefold() == key
                ]
            )
            for key, name in spelled.items()
        },
        totals=_mean(totals) if (totals := [vote.total for vote in votes if vote.total]) else None,
        votes=votes,
        prompt_tokens=sum(outcome.prompt_tokens for outcome in outcomes),
        completion_tokens=sum(outcome.completion_tokens for outcome in outcomes),
    )


def _side(share: float) -> int:
    return 1 if share > 0.5 else 2 if share < 0.5 else 0


def _mean(pairs: Sequence[Both]) -> Both:
    first, second = zip(*pairs, strict=True)
    return fmean(first), fmean(second)
