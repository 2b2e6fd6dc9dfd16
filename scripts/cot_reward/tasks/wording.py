"""The project's own prompts: the parts that each task says, put together for every output form."""

from dataclasses import dataclass

from cot_reward.records import Form


@dataclass(frozen=True)
class Wording:
    """What a task says in its prompts.

    intro: what is shown, and the question
    plural: the candidates ("images")
    dimensions: of each its name and the question; the first three stand in the examples
    ending: the fields, filled in for each comparison
    """

    intro: str
    plural: str
    dimensions: tuple[tuple[str, str], ...]
    ending: str


def prompts(noun: str, wording: Wording) -> dict[Form, str]:
    """The template of every form. `noun` names a candidate ("Image 1")."""
    return {
        "think": _think(noun, wording),
        "json": _json(noun, wording),
        "answer": _answer(noun, wording),
    }


def _dimensions(wording: Wording) -> str:
    return "\n".join(f"- {name}: {question}" for name, question in wording.dimensions)


def _think(noun: str, wording: Wording) -> str:
    first, second, third = (name for name, _ in wording.dimensions[:3])
    return f"""{wording.intro}

Look at each of these dimensions, and at any other that matters here:
{_dimensions(wording)}
Give both {wording.plural} a score from 1 to 10 in every dimension, each with a short reason. \
Then add up the scores of each. Write all of your reasoning inside <think> and </think>. Then, \
inside <answer> and </answer>, write exactly '{noun} 1 is better' or '{noun} 2 is better', \
whichever has the higher total, and nothing else.

The form, with made-up scores:
<think>
1. {first}: {noun} 1 (6/10) - ...; {noun} 2 (9/10) - ...
2. {second}: {noun} 1 (8/10) - ...; {noun} 2 (7/10) - ...
3. {third}: {noun} 1 (7/10) - ...; {noun} 2 (8/10) - ...
Total score:
{noun} 1: 6+8+7=21
{noun} 2: 9+7+8=24
</think>
<answer>{noun} 2 is better</answer>

{wording.ending}"""


def _json(noun: str, wording: Wording) -> str:
    first, second, third = (name for name, _ in wording.dimensions[:3])
    return f"""{wording.intro}

Look at each of these categories, and at any other that matters here:
{_dimensions(wording)}
Divide each category into the dimensions that matter for these {wording.plural}. In every \
dimension share 10 points between the two, with a short reason. The winner has the higher sum of \
all points. Answer with one JSON object and nothing else.

The form, with made-up scores:
{{"categories": [
{{"name": "{first}", "dimensions": [
{{"name": "...", "reason": "...", "scores": {{"{noun} 1": 3, "{noun} 2": 7}}}},
{{"name": "...", "reason": "...", "scores": {{"{noun} 1": 5, "{noun} 2": 5}}}}]}},
{{"name": "{second}", "dimensions": [
{{"name": "...", "reason": "...", "scores": {{"{noun} 1": 6, "{noun} 2": 4}}}}]}},
{{"name": "{third}", "dimensions": [
{{"name": "...", "reason": "...", "scores": {{"{noun} 1": 4, "{noun} 2": 6}}}}]}}],
"winner": "{noun} 2"}}

{wording.ending}"""


def _answer(noun: str, wording: Wording) -> str:
    return f"""{wording.intro}

Think of these dimensions, and of any other that matters here:
{_dimensions(wording)}
Answer exactly '{noun} 1 is better' or '{noun} 2 is better', and nothing else.

{wording.ending}"""
