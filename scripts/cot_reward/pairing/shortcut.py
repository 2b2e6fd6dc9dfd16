"""How well chosen texts can be told from rejected ones without seeing an image.

A model that is trained on pairs learns the easiest thing that tells them apart. Where words, length
or the position of the answer do, it need not learn to judge.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

# Fewer comparisons than this say nothing.
_FEWEST = 10
_FOLDS = 5
# An accuracy above this is worth a word.
WARN_ABOVE = 0.8

_ANSWER = re.compile(r"<answer>.*?(?:</answer>|\Z)", re.DOTALL)
_TAG = re.compile(r"</?\w+>")
# Letters only: no digits, no punctuation. Chinese and Japanese do not part words: each character.
_WORDS = r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\d_\u3040-\u30ff\u3400-\u9fff]+"


@dataclass(frozen=True)
class Texts:
    """One pair; `comparison` is the same for all pairs of a comparison, answers are 1, 2 or 0."""

    comparison: str
    chosen: str
    rejected: str
    chosen_answer: int
    rejected_answer: int


def accuracies(pairs: Sequence[Texts], seed: int = 0) -> dict[str, float | None]:
    """Held-out accuracy in telling chosen texts from rejected ones, by what is looked at.

    words: a bag of the words (TF-IDF) without answer blocks, tags and digits. length: the number of
    characters. answer: the position that the answer names. Each is a logistic regression on the
    difference of the two texts' features, 5-fold by comparison; 0.5 is chance, and a tie counts
    half. None where there are fewer than ten comparisons.
    """
    if len({pair.comparison for pair in pairs}) < _FEWEST:
        return {"words": None, "length": None, "answer": None}
    import numpy as np
    from scipy import sparse
    from sklearn.feature_extraction.text import TfidfVectorizer

    def words(side: str) -> list[str]:
        return [_TAG.sub(" ", _ANSWER.sub(" ", getattr(pair, side))) for pair in pairs]

    # The weights of words come from all texts, which tells nothing of who is chosen.
    vectorizer = TfidfVectorizer(token_pattern=_WORDS, sublinear_tf=True)
    texts = words("chosen") + words("rejected")
    try:
        bags = vectorizer.fit_transform(texts)
    except ValueError:
        # No text has a word (numbers alone, say): empty bags.
        bags = sparse.csr_matrix((len(texts), 1))

    def column(values: Sequence[float]) -> Any:
        whole = np.array(values, dtype=float).reshape(-1, 1)
        return whole / max(1.0, float(np.abs(whole).max()))

    position = {0: 0.0, 1: 1.0, 2: -1.0}
    seen = {
        "words": bags[: len(pairs)] - bags[len(pairs) :],
        "length": column([len(pair.chosen) - len(pair.rejected) for pair in pairs]),
        "answer": column(
            [position[pair.chosen_answer] - position[pair.rejected_answer] for pair in pairs]
        ),
    }
    groups = [pair.comparison for pair in pairs]
    return {name: round(_accuracy(features, groups, seed), 4) for name, features in seen.items()}


def _accuracy(features: Any, groups: Sequence[str], seed: int) -> float:
    """Of a classifier without intercept, which sees each training pair both ways round."""
    import numpy as np
    from scipy import sparse
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold

    right = 0.0
    folds = GroupKFold(_FOLDS, shuffle=True, random_state=seed)
    for train, test in folds.split(groups, groups=groups):
        known, unknown = features[train], features[test]
        both = (
            sparse.vstack([known, -known]) if sparse.issparse(known) else np.vstack([known, -known])
        )
        labels: Any = np.repeat([1, 0], len(train))
        model = LogisticRegression(fit_intercept=False, max_iter=1000).fit(both, labels)
        scores = model.decision_function(unknown)
        right += float((scores > 0).sum() + 0.5 * (scores == 0).sum())
    return right / len(groups)


def warning(found: dict[str, float | None], where: str) -> str:
    """In plain words what the pairs teach beside judging, or ""."""
    what = {
        "words": "by their words alone (two writers, or two styles: pair texts of one model, "
        "--same-model require)",
        "length": "by their length alone (--balance-lengths evens that out)",
        "answer": "by the position of the answer alone (--balance-positions evens that out)",
    }
    told = [
        f"in {100 * accuracy:.0f}% of held-out pairs {what[name]}"
        for name, accuracy in found.items()
        if accuracy is not None and accuracy > WARN_ABOVE
    ]
    if not told:
        return ""
    return (
        f"warning: {where}: without seeing an image, chosen can be told from rejected "
        + "; and ".join(told)
        + ". A model can bring its DPO loss down on these pairs without learning to judge."
    )
