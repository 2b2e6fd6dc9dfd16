"""The template that cold-start rows were made from, found in what their prompts share."""

import io
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cot_reward.errors import UserError, nearest
from cot_reward.records import PLACEHOLDERS, Task, placeholder_in
from cot_reward.rows.reading import read_rows
from cot_reward.store import write_text_file
from cot_reward.tasks import TASKS
from cot_reward.tasks.generation import CAPTION_MARKER
from cot_reward.tasks.prompts import check_template, fill, template_hash

# The share of rows that may have another wording, or none.
TOLERATED = 0.01
FIELD = "{caption}"
_MEDIA = "|".join(PLACEHOLDERS.values())

# Full-width punctuation is spelt by number: many fonts show it like its ASCII sister.
_PAIRS = dict(zip("[({\"'“‘「『【《\uff08\uff3b", "])}\"'”’」』】》\uff09\uff3d", strict=True))
# A quotation mark behind a letter is an apostrophe, or closes.
_OPENER = r"<\w+>|[\[({“‘「『【《\uff08\uff3b]|(?<!\w)[\"']"
_LEAD = re.compile(rf"\s*(?:({_OPENER})\s*)?")
# Where a field may begin when no marker says so. No colon of a time or an address.
_BOUNDARY = re.compile(rf"(?:\n|:(?![\w/])|\uff1a|{_MEDIA}|({_OPENER}))\s*")
# Fixed text that goes on in the caption's line is told from what captions share by chance
# ("on a white background") by holding a placeholder or being a sentence of its own.
_TAIL = re.compile(
    rf"\s*(?:{_MEDIA})|(?:^|(?<=[.!?]))\s+(?=[A-Z]\S*(?:\s+\S+){{2}})|(?<=[。\uff01\uff1f])(?=\S)"
)


@dataclass(frozen=True)
class Wording:
    """What prompts share: the text before the caption and the text after it.

    `closer` is what closes the bracket, quotation mark or tag around the caption ("": none).
    """

    prefix: str
    suffix: str
    closer: str = ""

    def caption_in(self, prompt: str) -> str | None:
        """What stands in the caption's place; None in another wording or without a caption."""
        end = len(prompt) - len(self.suffix)
        if not prompt.startswith(self.prefix) or not prompt.endswith(self.suffix):
            return None
        caption = prompt[len(self.prefix) : max(end, 0)]
        return caption if caption.strip() and not placeholder_in(caption) else None

    @property
    def letters(self) -> int:
        """Its length, white space apart."""
        return len("".join((self.prefix + self.suffix).split()))


@dataclass(frozen=True)
class Derived:
    """A template, and what was found on the way to it.

    text: the template as the client reads it
    front: the placeholders left out of it, which the client puts in front ("" when none are)
    wording: what the prompts share, placeholders included
    rows: how many were read
    captions: of the rows that have the wording, in their order
    deviating: (file:row, why) of all other rows
    """

    text: str
    front: str
    wording: Wording
    rows: int
    captions: list[str]
    deviating: list[tuple[str, str]]


@dataclass(frozen=True)
class _Row:
    where: str
    prompt: str
    # The caption, where the row names it; it occurs in the prompt.
    caption: str | None


def _row(where: str, row: dict[str, Any], task: Task) -> _Row:
    """Raises ValueError for a row without a prompt, or with more or fewer media than it shows."""
    talk = row.get("conversations")
    if talk is not None:
        turns = [turn for turn in talk if isinstance(turn, dict)] if isinstance(talk, list) else []
        texts = [turn["value"] for turn in turns if isinstance(turn.get("value"), str)]
        humans = [turn.get("value") for turn in turns if turn.get("from") == "human"]
        if not humans or not isinstance(humans[0], str):
            raise ValueError("no human turn with a text in 'conversations'")
        prompt = humans[0]
    else:
        strings = [row[name] for name in ("problem", "prompt") if isinstance(row.get(name), str)]
        if not strings:
            keys = ", ".join(map(repr, row)) or "no key"
            raise ValueError(
                f"no 'conversations', and no string in 'problem' or 'prompt', among {keys:.200}"
            )
        prompt = strings[0]
        texts = [prompt]
    column = next(name for name, token in PLACEHOLDERS.items() if token == task.placeholder)
    media = row.get(column)
    shown = sum(text.count(task.placeholder) for text in texts)
    if isinstance(media, list) and len(media) != shown:
        raise ValueError(f"{shown} {task.placeholder} in the texts, but {len(media)} in '{column}'")
    caption = row.get("prompt")
    caption = caption.strip() if isinstance(caption, str) else ""
    return _Row(where, prompt, caption if caption != prompt and caption in prompt else None)


def _same(first: str, second: str) -> int:
    """How many characters at the beginning are the same."""
    low, high = 0, min(len(first), len(second))
    # By halves: comparing slices is far faster than comparing characters.
    while low < high:
        middle = (low + high + 1) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _beginning(texts: Sequence[str], least: int) -> str:
    """The longest text that at least `least` of the texts begin with."""
    # Texts with the same beginning are neighbours when sorted.
    texts = sorted(texts)
    best = ""
    for first, last in zip(texts, texts[least - 1 :], strict=False):
        if last.startswith(first[: len(best) + 1]) and len(first) > len(best):
            best = first[: _same(first, last)]
    return best


def _ending(texts: Sequence[str], least: int) -> str:
    return _beginning([text[::-1] for text in texts], least)[::-1]


def _closer(opener: str | None) -> str:
    """What closes a bracket, quotation mark or tag; "" for None."""
    if opener is None:
        return ""
    return f"</{opener[1:-1]}>" if opener.startswith("<") else _PAIRS[opener]


def _boundaries(shared: str) -> Iterator[tuple[str, str]]:
    """Beginnings of a shared beginning that a caption may follow, the longest first.

    Each comes with what closes the bracket at its end ("": there is none).
    """
    for found in reversed(list(_BOUNDARY.finditer(shared))):
        closer = _closer(found[1])
        if not closer or closer not in shared[found.end() :]:
            yield shared[: found.end()], closer
    if not shared.strip():
        yield shared, ""


def _suffix(ending: str, closer: str) -> str:
    """The part of the captions' shared ending that is wording and not shared by chance."""
    line = ending.partition("\n")[0]
    if closer:
        at = ending.index(closer)
        # Of several closing brackets the last is the wording's: the caption is "[x]" in "[[x]]".
        while ending.startswith(closer, at + len(closer)):
            at += len(closer)
    else:
        tail = _TAIL.search(line)
        at = tail.start() if tail else len(line)
    return ending[len(ending[:at].rstrip()) :]


def _heads(prompts: Sequence[str]) -> list[tuple[str, int]]:
    """The texts up to the last marker, and how many prompts have each, the most frequent first."""
    return Counter(
        prompt[: prompt.rfind(CAPTION_MARKER) + len(CAPTION_MARKER)]
        for prompt in prompts
        if CAPTION_MARKER in prompt
    ).most_common()


def _shared_by(prompts: Sequence[str], least: int, head: str) -> Wording | None:
    """The wording that at least `least` of the prompts share, which begins with `head`."""
    if head:
        rests = [prompt[len(head) :] for prompt in prompts if prompt.startswith(head)]
        lead = _LEAD.match(_beginning(rests, min(least, len(rests))))
        assert lead is not None
        prefixes = [(head + lead[0], _closer(lead[1]))]
        if lead[1]:
            prefixes.append((head + lead[0][: lead.start(1)], ""))
    else:
        prefixes = list(_boundaries(_beginning(prompts, least)))
    for prefix, closer in prefixes:
        rests = [prompt[len(prefix) :] for prompt in prompts if prompt.startswith(prefix)]
        ending = _ending(rests, min(least, len(rests)))
        # What opens and never closes belongs to the captions.
        if closer in ending:
            return Wording(prefix, _suffix(ending, closer), closer)
    return None


def _around(captions: dict[str, str | None], least: int) -> Wording | None:
    """The wording around the captions that the rows name themselves.

    `captions` are those of the prompts. A short caption may occur in the wording, too: the place
    is the one that most prompts have in common.
    """
    places: Counter[tuple[int, int]] = Counter()
    for prompt, caption in captions.items():
        at = prompt.find(caption) if caption else -1
        while caption and at >= 0:
            places[at, len(prompt) - at - len(caption)] += 1
            at = prompt.find(caption, at + 1)
    for (before, after), count in places.most_common(1):
        if count >= least:
            wordings = Counter(
                (prompt[:before], prompt[len(prompt) - after :])
                for prompt, caption in captions.items()
                if caption and prompt[before : max(len(prompt) - after, 0)] == caption
            )
            wording, count = wordings.most_common(1)[0]
            return Wording(*wording) if count >= least else None
    return None


def _wording(rows: Sequence[_Row]) -> tuple[Wording | None, bool]:
    """The wording that most rows share, and whether it was found by the captions that rows name.

    None when nothing shows where a caption begins.
    """
    captions = {row.prompt: row.caption for row in rows}
    prompts = list(captions)
    half = min(len(prompts), max(3, len(prompts) // 2 + 1))
    if known := _around(captions, half):
        return known, True
    heads = _heads(prompts)
    head = heads[0][0] if heads and heads[0][1] >= half else ""
    ours = _shared_by(prompts, half, head)
    wide = _shared_by(prompts, len(prompts) - int(TOLERATED * len(prompts)), head)
    if ours is None or wide is None:
        return ours or wide, False
    missing = sum(ours.caption_in(row.prompt) is None for row in rows)
    # Half of the captions may end in a line break by chance, but not in a whole phrase or with
    # brackets around them: then the others deviate, and a shorter wording would hide that.
    longer = ours.letters >= wide.letters + 10 or ours.closer != wide.closer
    return (ours if longer or missing <= TOLERATED * len(rows) else wide), False


def _difference(prompt: str, wording: Wording) -> str:
    """Where a prompt leaves the wording: what it has there, and what others have."""
    for mine, theirs, step in (
        (prompt, wording.prefix, 1),
        (prompt[::-1], wording.suffix[::-1], -1),
    ):
        at = _same(mine, theirs)
        if at < len(theirs):
            place = slice(max(0, at - 20), at + 40)
            return f"{mine[place][::step]!r} where others have {theirs[place][::step]!r}"
    return f"no caption, or a placeholder in it, after {wording.prefix[-40:]!r}"


def _read(files: Sequence[Path], task: Task) -> Iterator[_Row | tuple[str, str]]:
    """The rows; for one without a prompt (file:row, why)."""
    for path in files:
        for number, row in read_rows(path):
            where = f"{path}:{number}"
            try:
                if isinstance(row, ValueError):
                    raise row
                yield _row(where, row, task)
            except ValueError as error:
                yield where, str(error)


def _split(wording: Wording, task: Task, where: str) -> tuple[str, str]:
    """The placeholders that the client puts in front, and the template. Raises UserError."""
    text = wording.prefix + wording.suffix
    for placeholder in PLACEHOLDERS.values():
        if placeholder != task.placeholder and placeholder in text:
            fitting = [
                other.name
                for other in TASKS.values()
                if (other.placeholder, other.fields) == (placeholder, task.fields)
            ]
            raise UserError(
                f"{where}: the prompts show {placeholder}, and task {task.name} is about "
                f"{task.placeholder}; name the task with --task {' or '.join(fitting)}"
            )
    count = text.count(task.placeholder)
    if count not in (0, 2):
        raise UserError(
            f"{where}: the prompts share {count} {task.placeholder}, and task {task.name} compares "
            "two media; give the rows of that task only"
        )
    if not re.search(r"\w", text.replace(task.placeholder, "")):
        raise UserError(
            f"{where}: the prompts have nothing in common but {text.strip()[:80]!r}; is this "
            "cold-start data? If it is, write the template by hand"
        )
    if FIELD in text:
        raise UserError(
            f"{where}: the wording itself holds {FIELD}, and a template cannot tell it from the "
            "field; change the wording in the rows before stage 1 trains on them"
        )
    front = task.placeholder * count
    rest = wording.prefix.removeprefix(front)
    if not wording.prefix.startswith(front) or not rest or rest[0].isspace():
        front = ""
    template = wording.prefix.removeprefix(front) + FIELD + wording.suffix
    if template != _as_read(template + "\n"):
        what = "carriage returns" if "\r" in template else "line breaks at their end"
        raise UserError(
            f"{where}: the prompts share {what}, which the client does not keep when it reads a "
            "template; take them out of the rows before stage 1 trains on them"
        )
    check_template(template, task)
    return front, template


def _as_read(text: str) -> str:
    """The template that the client finds in a file of this text."""
    return io.StringIO(text, newline=None).read().rstrip("\n")


def derive(files: Sequence[Path], task_name: str = "image_generation") -> Derived:
    """The template that the rows of the files share; at most 1% of them may deviate from it.

    A prompt is the first human turn of `conversations`, else `problem` or `prompt`. Where `prompt`
    is a text within it, that is the caption. Otherwise the caption begins after the last
    "Text Caption:", its white space and a bracket or quotation mark that all have, or without
    this marker after the last line break, colon or opening bracket of what most prompts begin
    with; it ends at the closing bracket, at a line break or at a sentence that all have.
    Every row that counts as common gives its prompt again when its caption is filled in.

    Raises UserError for files that cannot be read, unknown tasks and tasks of several fields,
    fewer than two different prompts, prompts in which no caption or no wording is found, a wording
    that a template file cannot hold, and when more than 1% of the rows deviate.
    """
    if task_name not in TASKS:
        raise UserError(f"--task: no task is called '{task_name}'.{nearest(task_name, TASKS)}")
    task = TASKS[task_name]
    if task.fields != ("caption",):
        raise UserError(
            f"--task {task.name}: it has the fields {', '.join(task.fields)}, and only templates "
            "with one caption can be derived; write this one by hand"
        )
    read = list(_read(files, task))
    rows = [row for row in read if isinstance(row, _Row)]
    where = ", ".join(map(str, files))
    different = len({row.prompt for row in rows})
    if different < 2:
        broken = [row for row in read if not isinstance(row, _Row)]
        raise UserError(
            f"{where}: {len(read)} rows with {different} different prompts; what is wording and "
            "what is caption shows only in two or more, so give more rows"
            + (f"; rows without a usable prompt:{_listed(broken)}" if broken else "")
        )
    wording, named = _wording(rows)
    if wording is None:
        raise UserError(
            f"{where}: nothing shows where the caption begins: no '{CAPTION_MARKER}', line break, "
            f"colon or bracket in what the prompts share; the first two are "
            f"{_short(rows[0].prompt)} and "
            f"{_short(next(row.prompt for row in rows if row.prompt != rows[0].prompt))}; write "
            "the template by hand, or name each row's caption in its 'prompt'"
        )

    captions: list[str] = []
    deviating: list[tuple[str, str]] = []
    common: list[_Row] = []
    for row in read:
        if not isinstance(row, _Row):
            deviating.append(row)
        elif (caption := wording.caption_in(row.prompt)) is None:
            deviating.append((row.where, _difference(row.prompt, wording)))
        elif named and row.caption and caption.strip() != row.caption:
            why = f"{_short(caption)} is in the caption's place, and 'prompt' is "
            deviating.append((row.where, why + _short(row.caption)))
        else:
            common.append(row)
            captions.append(caption)
    if len(deviating) > TOLERATED * len(read):
        raise UserError(
            f"{where}: {_count(deviating, len(read))}, more than {TOLERATED:.0%}, so nothing is "
            "written; mend them, take them out, or derive a template for each wording:"
            + _listed(deviating)
        )
    marked = [
        row for row, caption in zip(common, captions, strict=True) if CAPTION_MARKER in caption
    ]
    if CAPTION_MARKER not in wording.prefix + wording.suffix and len(marked) > TOLERATED * len(
        read
    ):
        heads = [Wording(head, "") for head, _ in _heads([row.prompt for row in marked])]
        other = next(row for row in rows if not row.prompt.startswith(heads[0].prefix))
        raise UserError(
            f"{where}: texts that lead to '{CAPTION_MARKER}': {len(heads)}, and none of them in "
            "most rows; derive a template for each wording, from its own rows:"
            + _listed([(other.where, _difference(other.prompt, heads[0]))])
        )
    front, text = _split(wording, task, where)
    for row, caption in zip(common, captions, strict=True):
        if front + fill(text, {"caption": caption}) != row.prompt:
            raise UserError(
                f"{row.where}: the template with the caption {_short(caption)} is not this row's "
                "prompt; write the template by hand"
            )
    return Derived(text, front, wording, len(read), captions, deviating)


def _short(text: str) -> str:
    """The text in quotes, in one line of at most some 120 characters."""
    return repr(text if len(text) <= 110 else f"{text[:50]} ... {text[-50:]}")


def _count(deviating: list[tuple[str, str]], rows: int) -> str:
    return f"{len(deviating):,} of {rows:,} rows ({len(deviating) / rows:.2%}) deviate"


def _listed(deviating: list[tuple[str, str]]) -> str:
    """The first ten, each in a line of its own with a line break before it."""
    lines = "".join(f"\n  {where}: {why}" for where, why in deviating[:10])
    return lines + (f"\n  and {len(deviating) - 10:,} more" if len(deviating) > 10 else "")


def describe(found: Derived, task: Task) -> str:
    """What was found, for people: some lines without a line break at the end."""
    captions = list(dict.fromkeys(found.captions))
    lines = [
        f"{found.rows:,} rows, {len(found.captions):,} of them with one wording in common; "
        f"{len(captions):,} different captions"
    ]
    if found.deviating:
        lines.append(_count(found.deviating, found.rows) + ":" + _listed(found.deviating))
    if found.front:
        lines.append(f"{found.front} left out: the client puts them in front")
    elif task.placeholder in found.text:
        lines.append(f"{task.placeholder} kept where they stand in the prompts")
    else:
        lines.append(f"warning: no {task.placeholder} in the prompts; the client shows them first")
    before, _, after = found.text.partition(FIELD)
    behind = f"before {after[:40]!r}" if after else "at the end"
    lines.append(f"caption: after {before[-40:]!r}, {behind}")
    lines.append(f"  the first: {_short(captions[0])}")
    if others := captions[1:]:
        lines.append(f"  the longest other: {_short(max(others, key=len))}")
        begin, end = _beginning(captions, len(captions)), _ending(captions, len(captions))
        lines += [
            f"  all {place} with {_short(shared)}; if that is wording, move it out of the field"
            for place, shared in (("begin", begin), ("end", end))
            if shared
        ]
    lines.append(f"template: {len(found.text):,} characters, hash {template_hash(found.text)}")
    return "\n".join(lines)


def write_template(files: Sequence[Path], task_name: str, out: str) -> int:
    """Derive, say what was found and write the template; returns the exit code. Raises UserError.

    With `out` "-" the template goes to stdout and the rest to stderr.
    """
    found = derive(files, task_name)
    print(describe(found, TASKS[task_name]), file=sys.stderr if out == "-" else sys.stdout)
    if out == "-":
        print(found.text)
    else:
        write_text_file(Path(out), found.text + "\n")
        print(f"{out}: written; give it to the client with --template {out}")
    return 0
