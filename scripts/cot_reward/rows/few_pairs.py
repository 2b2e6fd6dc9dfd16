"""A word about few pairs, for the merger and for stage 3: before a GPU is spent on them."""

# From so many pairs on there is no word. On 83 to 193 pairs stage 3 of an earlier demo gained 1.7
# points of accuracy or lost 2.4, with the seed and the base model (tests/bench/RESULTS.md).
FEW_PAIRS = 200


def few_pairs_warning(pairs: int, steps: int | None = None) -> str:
    """What to expect of so few pairs; "" where they are enough.

    `steps` are the optimiser steps that stage 3 makes; None: not known yet.
    """
    if pairs >= FEW_PAIRS:
        return ""
    found = f"{pairs} pair{'s' * (pairs != 1)}"
    if steps is not None:
        found += f", {steps} step{'s' * (steps != 1)}"
    return (
        f"warning: {found}: expect noise; on 83 to 193 pairs a small model gained or lost "
        "accuracy with the seed and the base model. More comparisons, or more samples of "
        "each (--num-samples), make more pairs"
    )
