"""A word about few pairs, for the merger and for stage 3: before a GPU is spent on them."""

# From so many pairs on there is no word. The figure is the demo's: below it, what stage 3 gained or
# lost there depended on the seed and on the base model. Keep it in step with the demo's results.
FEW_PAIRS = 500


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
        f"warning: {found}: expect noise; in the demo, runs on fewer than {FEW_PAIRS} pairs gained "
        "or lost accuracy with the seed and the base model. More comparisons, or more samples of "
        "each (--num-samples), make more pairs"
    )
