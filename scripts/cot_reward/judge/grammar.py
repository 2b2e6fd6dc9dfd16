"""The well-formed texts of a form and a task as one regular expression, for a server to force.

Every text that it matches in full is one that the judge can read. It is plain: classes, groups,
alternatives and repetitions, without anchors or look-around, since each engine behind
`structured_outputs` (xgrammar, guidance, outlines, lm-format-enforcer) has an own reader of it.
"""

from cot_reward.records import Form, Task

# What `str.strip` takes off. lm-format-enforcer reads no escape of four digits.
_SPACE = r"[ \t\n\r\f\v\x1c-\x1f\x85\xa0" "\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]*"
_JSON_SPACE = r"[ \t\n\r]*"
# The same in Python, in Rust and in JavaScript: no class of theirs is used.
_STRING = r'"(?:[^"\\\x00-\x1f]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4})*"'
_NUMBER = r"(?:0|[1-9][0-9]?)(?:\.[0-9]{1,3})?"
# The members that the object has, in their order.
JSON_MEMBERS = ("categories", "name", "dimensions", "reason", "scores", "winner")


def grammar(form: Form, task: Task, opened: bool = False) -> str:
    """The regular expression.

    `opened`: the chat template has written <think> already, so that a text of the form `think`
    begins within the block; texts of other forms have no block, and nothing may be opened for them.

    `think`: a block without a tag in it, and a block with one of the two answers. Texts that the
    judge can read are all matched. `answer`: one of the two answers. `json`: the object that the
    project's own prompt shows, with its members in their order; the judge reads others as well. The
    scores are numbers below 100: whether two of them share ten points stays the model's affair, as
    sums do in a chain of thought, and the judge's.
    """
    if form == "think":
        opening = "" if opened else f"{_SPACE}<think>"
        return f"{opening}{_reasoning()}</think>{_SPACE}<answer>{_answers(task)}</answer>{_SPACE}"
    return _answers(task) if form == "answer" else _json(task)


def _answers(task: Task) -> str:
    return f"{_SPACE}(?:{'|'.join(task.answers)}){_SPACE}"


def _reasoning() -> str:
    """Any text in which no tag stands.

    All tags begin with their only "<". So a "<" and the first letters of a tag may stand there when
    a letter follows that does not go on with the tag, or the next "<". Runs of other letters are
    repetitions of one class: with each letter an alternative of an outer repetition, xgrammar tries
    every token of the vocabulary anew at every token of a text (tests/bench/masks.py).
    """
    tags = [slash + name for slash in ("", "/") for name in ("think", "answer")]
    # A beginning of a tag -> the letters that would go on with it.
    begun: dict[str, set[str]] = {}
    for tag in tags:
        for length, letter in enumerate([*tag, ">"]):
            begun.setdefault(tag[:length], set()).add(letter)
    cut_off = "|".join(
        f"{start}(?:[^<{''.join(sorted(letters))}][^<]*)?" for start, letters in begun.items()
    )
    return f"[^<]*(?:<(?:{cut_off}))*"


def _json(task: Task) -> str:
    s = _JSON_SPACE
    names = [f"{task.noun} {number}" for number in (1, 2)]
    winners = "|".join([*names, *task.answers])

    def member(name: str, value: str) -> str:
        return f'"{name}"{s}:{s}{value}'

    def an_object(*members: str) -> str:
        return rf"\{{{s}" + f"{s},{s}".join(members) + rf"{s}\}}"

    def a_list(item: str) -> str:
        return rf"\[{s}{item}(?:{s},{s}{item})*{s}\]"

    scores = an_object(*(member(name, _NUMBER) for name in names))
    dimension = an_object(
        member("name", _STRING), member("reason", _STRING), member("scores", scores)
    )
    category = an_object(member("name", _STRING), member("dimensions", a_list(dimension)))
    found = an_object(member("categories", a_list(category)), member("winner", f'"(?:{winners})"'))
    return rf"{_SPACE}(?:{found}|```(?:json)?[ \t]*\n{s}{found}{s}\n[ \t]*```){_SPACE}"
