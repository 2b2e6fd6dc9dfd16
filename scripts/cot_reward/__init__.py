"""What the stage scripts share; each module is one room of the house (README.md, "Layout")."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cot_reward.reward.model import RewardModel
    from cot_reward.reward.results import Failure, Judgement, Ranking

__all__ = ["Failure", "Judgement", "Ranking", "RewardModel"]
_HOMES = dict.fromkeys(("Failure", "Judgement", "Ranking"), "results") | {"RewardModel": "model"}


def __getattr__(name: str) -> Any:
    """The reward in use, imported at its first use: every command imports this package."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"cot_reward.reward.{_HOMES[name]}"), name)
