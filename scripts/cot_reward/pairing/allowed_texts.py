"""Which judged texts may be chosen or rejected in a pair, and why the others may not."""

from collections.abc import Set
from dataclasses import dataclass

from cot_reward.judge import TRUSTED
from cot_reward.rows.responses import Judged, is_unfit


@dataclass(frozen=True)
class Admission:
    """The kinds of texts that pairs may use (see `MergeSettings` for the words)."""

    chosen_coherence: Set[str]
    rejected_kinds: Set[str]
    rejected_coherence: Set[str]

    def refusal(self, judged: Judged, right_side: bool) -> str:
        """Why no pair may use the text, as the summary calls it; "" when a pair may.

        `right_side`: the text stands in a file of correct responses.
        """
        verdict, coherence = judged.verdict, judged.coherence
        if right_side:
            if verdict != "correct":
                return f"judged_{verdict}"
            if coherence not in self.chosen_coherence:
                return f"chosen_{coherence}"
        else:
            kind = verdict
            if verdict == "correct" and coherence not in TRUSTED:
                kind = "incoherent"
            if kind not in self.rejected_kinds:
                return f"judged_{verdict}"
            if kind == "incorrect" and coherence not in self.rejected_coherence:
                return f"rejected_{coherence}"
        return "empty_or_holds_placeholder" if is_unfit(judged.text) else ""
