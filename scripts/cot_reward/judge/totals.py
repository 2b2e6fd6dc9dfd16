"""The reasoning of a chain of thought -> the totals that it states.

Totals are read in two ways. `announced` reads the form that the prompt asks for (a heading, then
each candidate with its total), fast. Only where it finds nothing, or where the text corrects
itself afterwards, `layouts` reads tables, a block for each candidate, pairs, ...
"""

from cot_reward.judge.announced import announced_totals
from cot_reward.judge.layout_patterns import COMPARED, CORRECTION, SPOKEN_TOTAL
from cot_reward.judge.layouts import LayoutReader, without_markup
from cot_reward.judge.stated import StatedTotal, with_ascii_digits
from cot_reward.records import Verdict


def has_unread_totals(text: str, verdict: Verdict) -> bool:
    """Whether a text speaks of totals or writes out sums, and the judge could read no totals.

    Count these texts to see how much the finding "no_totals" hides.
    """
    return (
        verdict.coherence == "no_totals"
        and SPOKEN_TOTAL.search(with_ascii_digits(text)) is not None
    )


def totals_in(reasoning: str, noun: str) -> tuple[dict[int, StatedTotal], str]:
    """The stated totals by candidate (1, 2; empty when not both are stated), and the text before.

    When a text corrects itself, the last complete statement counts. Full-width digits and signs
    count as ASCII.
    """
    text = with_ascii_digits(reasoning)
    found, before = announced_totals(text, noun)
    starts = [stated.start for stated in found.values()]
    # In "... worse than Image 2\nTotal: 7" the total is not Image 2's.
    if found and not any(
        text[at - 1 : at] != "\n" and COMPARED.search(text, max(0, at - 20), at) for at in starts
    ):
        # The text after the totals is short in most texts, so that this search costs little.
        last = max(starts)
        correction = CORRECTION.search(text, last)
        if correction is None:
            return found, before
        tail = text[correction.start() :]
        return LayoutReader(without_markup(tail), noun, found).totals(), before
    if SPOKEN_TOTAL.search(text) is None:
        return {}, text
    text = without_markup(text)
    found = LayoutReader(text, noun).totals()
    start = min((stated.start for stated in found.values()), default=len(text))
    return found, text[:start]
