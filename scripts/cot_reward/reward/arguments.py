"""Arguments of RewardModel, checked before anything is asked."""

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

from cot_reward.records import Task
from cot_reward.reward.pictures import Picture
from cot_reward.reward.question import Candidate, check_question
from cot_reward.reward.ranking import check_most
from cot_reward.reward.results import Failure

Context: TypeAlias = Picture | Sequence[Picture]
# Prompt, first and second candidate, and the context where the task has one.
Item: TypeAlias = tuple[str, Candidate, Candidate] | tuple[str, Candidate, Candidate, Context]
# Prompt, candidates, and the context where the task has one.
Group: TypeAlias = tuple[str, Sequence[Candidate]] | tuple[str, Sequence[Candidate], Context]
# The same with their context, which may be empty.
FullItem: TypeAlias = tuple[str, Candidate, Candidate, Context]
FullGroup: TypeAlias = tuple[str, Sequence[Candidate], Context]


def full_items(items: Iterable[Item], task: Task) -> list[FullItem]:
    """Raises TypeError and ValueError for an item that is no comparison of the task."""
    found: list[FullItem] = []
    for number, item in enumerate(items):
        prompt, a, b, context = _parts(item, f"item {number}", "prompt", "a", "b")
        check_question(task, prompt, (a, b), context)
        found.append((prompt, a, b, context))
    return found


def full_groups(
    groups: Iterable[Group], task: Task, max_comparisons: int | None
) -> list[FullGroup]:
    """Raises TypeError and ValueError for a group that cannot be ranked."""
    found: list[FullGroup] = []
    for number, group in enumerate(groups):
        prompt, candidates, context = _parts(group, f"group {number}", "prompt", "candidates")
        check_group(task, prompt, candidates, context, max_comparisons, None)
        found.append((prompt, candidates, context))
    return found


def _parts(given: Iterable[Any], what: str, *names: str) -> tuple[Any, ...]:
    """The parts with these names, and the context, which may be left out. Raises ValueError."""
    parts = tuple(given)
    if len(parts) == len(names):
        return (*parts, ())
    if len(parts) == len(names) + 1:
        return parts
    short = ", ".join(names)
    raise ValueError(f"{what} has {len(parts)} parts; it is ({short}) or ({short}, context)")


def check_group(
    task: Task,
    prompt: str,
    candidates: Sequence[Candidate | Failure],
    context: Context,
    max_comparisons: int | None,
    reference: Candidate | Failure | None,
) -> None:
    """Raises TypeError and ValueError for a ranking that cannot be asked for."""
    if not isinstance(candidates, list | tuple):
        raise TypeError(f"the candidates are a list, not {type(candidates).__name__}")
    against = [] if reference is None else [reference]
    check_question(task, prompt, (*candidates, *against), context)
    check_most(len(candidates), max_comparisons, reference is not None)
