"""The judge: the text of a completion -> Verdict. It is pure, and it never guesses an answer.

Two findings are independent of each other: the verdict (is the answer right?) and the coherence
(do the scores, sums and totals of the reasoning support the answer?). A wrong sum is found by
`StatedTotal.adds_up`, and the order in which findings count stands in `_coherence`.
"""

from collections.abc import Callable

from cot_reward.finish_reasons import ending
from cot_reward.judge.announced import scores_in
from cot_reward.judge.json_form import read_json, winner_block
from cot_reward.judge.stated import StatedTotal
from cot_reward.judge.totals import totals_in
from cot_reward.records import Form, Task, Verdict

# Raise this when a finding changes for any text: stored findings are then judged again.
VERSION = 4
# The coherence of a well-formed text is one of these.
FINDINGS = ("coherent", "no_totals", "tie", "contradicts", "wrong_sum")
# A right answer is used for training only when its own reasoning does not speak against it.
TRUSTED = FINDINGS[:2]
_TAGS = ("<think>", "</think>", "<answer>", "</answer>")


def judge(
    text: str,
    task: Task,
    label: int,
    finish_reason: str = "",
    form: Form = "think",
    *,
    mismatches: bool = True,
) -> Verdict:
    """Judge one completion, of the asked form, against the label as presented (1 or 2).

    A well-formed text of the form `think` is one think block, then one answer block, which holds
    exactly one of the task's two answer strings; of the form `json` it is one object
    (`json_form.read_json`); of the form `answer` it is one of the answer strings, which no
    reasoning supports or contradicts. Only white space stands around, and the generation ended by
    itself.

    `mismatches=False` does not look for mismatches (the finding is False) and takes 6/10 of the
    time.
    """
    ended = ending(finish_reason)
    if ended == "truncated":
        return Verdict("truncated", "", 0)
    found = _READERS[form](text, task, mismatches) if ended == "finished" else None
    if found is None:
        return Verdict("unparsed", "", 0)
    answer, coherence, mismatch = found
    return Verdict("correct" if answer == label else "incorrect", coherence, answer, mismatch)


# Answer, coherence, mismatch; None for a text that is not of the form.
_Found = tuple[int, str, bool] | None


def _read_think(text: str, task: Task, mismatches: bool) -> _Found:
    blocks = _blocks(text)
    if blocks is None or blocks[1] not in task.answers:
        return None
    reasoning, answer_text = blocks
    answer = task.answers.index(answer_text) + 1
    totals, before = totals_in(reasoning, task.noun)
    mismatch = mismatches and _mismatch(totals, before, task.noun)
    return answer, _coherence(totals, answer), mismatch


def _read_json(text: str, task: Task, mismatches: bool) -> _Found:
    found = read_json(text, task)
    return (*found, False) if found else None


def _read_answer(text: str, task: Task, mismatches: bool) -> _Found:
    answer = text.strip()
    return (task.answers.index(answer) + 1, "no_totals", False) if answer in task.answers else None


_READERS: dict[Form, Callable[[str, Task, bool], _Found]] = {
    "think": _read_think,
    "json": _read_json,
    "answer": _read_answer,
}


def destination(verdict: Verdict, allow_incoherent: bool = False) -> str:
    """The file that a judged response belongs to: "correct", "incorrect" or "unusable"."""
    if verdict.verdict == "incorrect":
        return "incorrect"
    if verdict.verdict == "correct" and (allow_incoherent or verdict.coherence in TRUSTED):
        return "correct"
    return "unusable"


def answer_block(text: str) -> str | None:
    """The part of a text that is its answer; None where `judge` would not look for an answer.

    Of a chain of thought it is the answer block with its tags, of a JSON object its winner. It
    stands exactly once in the text, whatever the answer in it says.
    """
    if text.lstrip().startswith(("{", "```")):
        return winner_block(text)
    if _blocks(text) is None:
        return None
    return text[text.index(_TAGS[2]) : text.index(_TAGS[3]) + len(_TAGS[3])]


def reasoning_of(text: str) -> str | None:
    """What stands in the think block of a well-formed chain of thought; None for another text."""
    blocks = _blocks(text)
    return blocks and blocks[0]


def _blocks(text: str) -> tuple[str, str] | None:
    """The reasoning and the answer; None unless the text is one think and one answer block."""
    parts = []
    for tag in _TAGS:
        before, found, text = text.partition(tag)
        if not found:
            return None
        parts.append(before)
    before, reasoning, between, answer = parts
    # An answer with a tag in it needs no check: it is neither of the two answer strings.
    if before.strip() or between.strip() or text.strip() or any(tag in reasoning for tag in _TAGS):
        return None
    return reasoning, answer.strip()


def _coherence(totals: dict[int, StatedTotal], answer: int) -> str:
    """One of FINDINGS. A wrong sum comes first: wrong totals support no answer."""
    if not totals:
        return "no_totals"
    if not all(stated.adds_up for stated in totals.values()):
        return "wrong_sum"
    first, second = totals[1].total, totals[2].total
    if first == second:
        return "tie"
    return "coherent" if (1 if first > second else 2) == answer else "contradicts"


def _mismatch(totals: dict[int, StatedTotal], before: str, noun: str) -> bool:
    """Whether the summands of a total are not the scores that the text before the totals gives."""
    scores = scores_in(before, noun) if totals else {}
    # Without a readable score there is nothing to compare the summands with.
    return any(scores.values()) and any(
        stated.summands and sorted(stated.summands) != sorted(scores[candidate])
        for candidate, stated in totals.items()
    )
