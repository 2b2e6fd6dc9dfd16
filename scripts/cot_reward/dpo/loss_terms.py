"""The terms of TRL's loss: seen one by one, weighted, and as means by the pairs' weights."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class LossTerm:
    """A term of TRL's loss: its kind, its weight and, once TRL has used it, its mean.

    TRL adds `mean * weight` for each loss type. A LossTerm takes the weight's place and keeps the
    mean, so that a term is TRL's own number and needs no second forward. `own_mean` is called for
    another mean in place of TRL's.
    """

    def __init__(
        self, kind: str, weight: float, own_mean: Callable[[], Tensor] | None = None
    ) -> None:
        self.kind, self.weight, self._own_mean = kind, weight, own_mean
        self.mean = torch.zeros(())

    def __rmul__(self, mean: Tensor) -> Tensor:
        if self._own_mean is not None:
            mean = self._own_mean()
        self.mean = mean.detach()
        return mean * self.weight


class WeightedMeans(TorchFunctionMode):
    """Inside, `mean()` of a tensor (pairs,) is a mean by the pairs' weights.

    TRL ends each loss in this mean of its values by pair, and nothing else of TRL lets a pair have
    a weight in every loss.
    """

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self._weight = weight / weight.sum()
        self._taken = 0

    def __torch_function__(
        self, function: Any, types: Any, arguments: Any = (), named: Any = None
    ) -> Any:
        if function is torch.Tensor.mean and len(arguments) == 1 and not named:
            (values,) = arguments
            if values.shape == self._weight.shape:
                self._taken += 1
                return (values * self._weight).sum()
        return function(*arguments, **(named or {}))

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        super().__exit__(kind, error, traceback)
        if error is None and not self._taken:
            raise RuntimeError("TRL no longer ends a loss in mean(): pairs would have no weights")
