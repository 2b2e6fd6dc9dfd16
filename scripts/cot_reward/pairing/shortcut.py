"""How well classifiers tell chosen texts from rejected texts without seeing an image.

A model that is trained on pairs learns the easiest thing that tells them apart. If the words, the
length or the position of the answer tell them apart, the model need not learn to judge.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# With fewer comparisons, an accuracy says nothing.
_MIN_COMPARISONS = 10
_FOLDS = 5
_MAX_ACCURACY_WITHOUT_WARNING = 0.8

_ANSWER = re.compile(r"<answer>.*?(?:</answer>|\Z)", re.DOTALL)
_TAG = re.compile(r"</?\w+>")
# Letters only, no digits or punctuation. Chinese and Japanese do not separate words, so there each
# character counts as a word.
_WORDS = r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\d_\u3040-\u30ff\u3400-\u9fff]+"


@dataclass(frozen=True)
class Texts:
    """One pair. `comparison` is the key of its comparison; answers are 1, 2 or 0 (no answer)."""

    comparison: str
    chosen: str
    rejected: str
    chosen_answer: int
    rejected_answer: int


def accuracies(pairs: Sequence[Texts], seed: int = 0) -> dict[str, float | None]:
    """Held-out accuracy in telling chosen texts from rejected texts, by the features that are seen.

    words: a bag of the words (TF-IDF) without answer blocks, tags and digits. length: the number of
    characters. answer: the position that the answer names. Each classifier is a logistic regression
    on the difference of the two texts' features, 5-fold by comparison; 0.5 is chance, and a tie
    counts half. None if there are fewer than ten comparisons.
    """
    if len({pair.comparison for pair in pairs}) < _MIN_COMPARISONS:
        return {"words": None, "length": None, "answer": None}
    import numpy as np
    from scipy import sparse
    from sklearn.feature_extraction.text import TfidfVectorizer

    def words(side: str) -> list[str]:
        return [_TAG.sub(" ", _ANSWER.sub(" ", getattr(pair, side))) for pair in pairs]

    # The weights of words come from all texts, held-out ones too: they do not depend on the labels.
    vectorizer = TfidfVectorizer(token_pattern=_WORDS, sublinear_tf=True)
    texts = words("chosen") + words("rejected")
    try:
        bags = vectorizer.fit_transform(texts)
    except ValueError:
        # No text has a word, but numbers only, say.
        bags = sparse.csr_matrix((len(texts), 1))

    def column(values: Sequence[float]) -> Any:
        unscaled = np.array(values, dtype=float).reshape(-1, 1)
        return unscaled / max(1.0, float(np.abs(unscaled).max()))

    position = {0: 0.0, 1: 1.0, 2: -1.0}
    features = {
        "words": bags[: len(pairs)] - bags[len(pairs) :],
        "length": column([len(pair.chosen) - len(pair.rejected) for pair in pairs]),
        "answer": column(
            [position[pair.chosen_answer] - position[pair.rejected_answer] for pair in pairs]
        ),
    }
    groups = [pair.comparison for pair in pairs]
    return {name: round(_accuracy(values, groups, seed), 4) for name, values in features.items()}


def _accuracy(features: Any, groups: Sequence[str], seed: int) -> float:
    """The accuracy of a classifier without intercept, trained on each pair both ways round."""
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


def warning(by_feature: Mapping[str, float | None], where: str) -> str:
    """What the pairs teach besides judging, in plain words; "" if all accuracies are low."""
    explanations = {
        "words": "by their words alone (two writers, or two styles: pair texts of one model, "
        "--pair-from same-model)",
        "length": "by their length alone (--balance-lengths evens that out)",
        "answer": "by the position of the answer alone (--balance-positions evens that out)",
    }
    shortcuts = [
        f"in {100 * accuracy:.0f}% of held-out pairs {explanations[name]}"
        for name, accuracy in by_feature.items()
        if accuracy is not None and accuracy > _MAX_ACCURACY_WITHOUT_WARNING
    ]
    if not shortcuts:
        return ""
    return (
        f"warning: {where}: without seeing an image, chosen can be told from rejected "
        + "; and ".join(shortcuts)
        + ". A model can bring its DPO loss down on these pairs without learning to judge."
    )
