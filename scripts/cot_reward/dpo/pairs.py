"""The pairs of a file, checked by `rows.validation`, as TRL's conversational rows."""

import json
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from datasets import Dataset

from cot_reward.dpo.groups import SIDES, make_rows
from cot_reward.errors import UserError
from cot_reward.judge import judge
from cot_reward.media.images import MAX_PIXELS
from cot_reward.records import Task
from cot_reward.rows.preference_forms import prompt_messages
from cot_reward.rows.preferences import PairReader
from cot_reward.rows.reading import read_rows
from cot_reward.rows.validation import check_pair_row, form_of
from cot_reward.store import dump
from cot_reward.tasks import TASKS
from cot_reward.tasks.prompts import mixed_templates
from cot_reward.training.rows import describe_problems, inspect_images, printable

# Counts the tokens of prompt, chosen and rejected of a row of `conversational`, under these names,
# given the sizes (width, height) of its images as the model is shown them.
TokenCount = Callable[[dict[str, Any], list[tuple[int, int]]], dict[str, int]]


@dataclass
class Pairs:
    """The rows of a file that can be trained on, and what is wrong with the others.

    Fields of `rows`: `prompt`, `chosen`, `rejected` (messages), `image_paths` (relative to the
    image folder), `digest` (of all that the model is shown), `prompt_digest`, `chosen_digest` and
    `rejected_digest` (of the prompt with its images, alone and with a text), `tokens` (counts of
    the parts, if they were wanted), `comparison` (tells which one the row is about), `task` (its
    name), and what `group_labels` tells.
    """

    rows: list[dict[str, Any]]
    problems: list[str]

    def dataset(self, **settings: Any) -> Dataset:
        """The rows of training; `settings` as of `groups.make_rows`."""
        return Dataset.from_list(make_rows(self.rows, **settings))

    @property
    def comparisons(self) -> int:
        return len({row["comparison"] for row in self.rows})


def load_pairs(
    path: str,
    image_folder: str,
    *,
    max_pixels: int = MAX_PIXELS,
    max_length: int | None = None,
    count_tokens: TokenCount | None = None,
    skip_bad_rows: bool = False,
    seen_images: Path | None = None,
) -> Pairs:
    """The pairs of a JSON list, JSONL or Parquet file of any form, every one of them checked.

    Every image is read once, and decoded unless the database `seen_images` has its content. With
    `count_tokens` the rows have `tokens`. With `max_length`, too, a row whose longer text has more
    tokens is a bad one: it would be cut, and with it the answer. Raises UserError with the number
    of bad rows and the first ten, unless `skip_bad_rows`, and when none are left.
    """
    folder = Path(image_folder)
    if not folder.is_dir():
        raise UserError(f"--image_folder {folder}: no such folder")
    rows: list[tuple[int, dict[str, Any]]] = []
    problems: dict[int, str] = {}
    as_pair = PairReader()
    for number, row in read_rows(Path(path)):
        try:
            if isinstance(row, ValueError):
                raise row
            pair = dict(as_pair(number, row))
            check_pair_row(pair)
            rows.append((number, pair))
        except ValueError as error:
            problems[number] = str(error)
    total = len(rows) + len(problems)

    found = inspect_images(
        {image for _, row in rows for image in row["images"]}, folder, max_pixels, seen_images
    )

    good = []
    for number, row in rows:
        shown = [found[image] for image in row["images"]]
        bad = next((what for what in shown if isinstance(what, str)), "")
        sizes = [what[1] for what in shown if not isinstance(what, str)]
        ready = conversational(row)
        if not bad and count_tokens:
            ready["tokens"] = counts = count_tokens(ready, sizes)
            tokens = counts["prompt"] + max(counts["chosen"], counts["rejected"])
            if max_length and tokens > max_length:
                bad = f"has {tokens} tokens and would be cut by --max_length {max_length}"
        if bad:
            problems[number] = bad
            continue
        digests = [what[0] for what in shown]
        good.append(
            ready
            | group_labels(row)
            | digests_of(row, digests)
            | {"comparison": comparison_of(row), "task": task_of(row).name, "form": form_of(row)}
        )

    problems = {number: printable(what) for number, what in problems.items()}
    if problems and not skip_bad_rows:
        raise UserError(describe_problems(Path(path), problems, total))
    if not good:
        nothing = f"{path}: there are no rows"
        raise UserError(describe_problems(Path(path), problems, total) if problems else nothing)
    return Pairs(good, [f"{path}:{number}: {what}" for number, what in sorted(problems.items())])


def template_warning(*paths: str | None) -> str:
    """A warning when the merger's summaries next to these files name several templates; else ""."""
    hashes: dict[str, set[str]] = defaultdict(set)
    for path in filter(None, paths):
        summary = Path(path).parent / "summary.json"
        with suppress(OSError, ValueError, LookupError, AttributeError, TypeError):
            by_task = json.loads(summary.read_text("utf-8"))["template_hashes"]
            for task, task_hashes in by_task.items():
                hashes[task].update(task_hashes)
    return mixed_templates(hashes)


def conversational(row: Mapping[str, Any]) -> dict[str, Any]:
    """A DPO row as TRL's conversational preference row.

    Each completion holds only the assistant's text. The paths are in `image_paths`, since TRL
    expects opened images in a column `images`.
    """
    return {
        "prompt": prompt_messages(row),
        "chosen": [{"role": "assistant", "content": row["chosen"]}],
        "rejected": [{"role": "assistant", "content": row["rejected"]}],
        "image_paths": list(row["images"]),
    }


def group_labels(row: Mapping[str, Any]) -> dict[str, int]:
    """What the trainer is told of a pair.

    `answer` is the chosen text's answer, 1 or 2 (0: unreadable). `same_model` tells whether one
    model wrote both texts, 1 or 0 (-1: unknown). By these the metrics group pairs. `answer_only` is
    1 where the rejected text contradicts its own totals, so that its answer alone is wrong.
    """
    answer = row.get("chosen_answer")
    if type(answer) is not int or answer not in (1, 2):
        # The merger did not write this row, so the answer is read out of the text.
        answer = judge(row["chosen"], task_of(row), 1, form=form_of(row)).answer
    models = [row.get(name) for name in ("chosen_model", "rejected_model")]
    finding = ""
    if answer:
        finding = judge(
            row["rejected"], task_of(row), answer, form=form_of(row), mismatches=False
        ).coherence
    return {
        "answer": answer,
        "same_model": int(models[0] == models[1]) if all(models) else -1,
        "answer_only": int(finding == "contradicts"),
    }


def task_of(row: Mapping[str, Any]) -> Task:
    """The task of a row; rows of other trainers name none."""
    return TASKS.get(str(row.get("task")), TASKS["image_generation"])


def comparison_of(row: Mapping[str, Any]) -> str:
    """What tells the comparison of a row: its id or, without one, its prompt and its images.

    Both presentation orders of two images are one comparison.
    """
    return str(row.get("id") or dump([row["problem"], sorted(row["images"])]))


def digests_of(row: Mapping[str, Any], images: list[Any]) -> dict[str, str]:
    """The sha256 of what the model is shown: texts, and the images' contents; paths do not count.

    `digest` is of the pair, `prompt_digest` of the prompt alone, `chosen_digest` and
    `rejected_digest` of the prompt with one text.
    """
    prompt = [row["problem"], images]
    # Rows without a system prompt keep the digest that earlier versions gave them.
    system = [row["system"]] if row.get("system") else []
    whole = [row["problem"], row["chosen"], row["rejected"], images, *system]
    return {
        "digest": _sha256(whole),
        "prompt_digest": _sha256([*prompt, *system]),
        **{f"{side}_digest": _sha256([row[side], *prompt, *system]) for side in SIDES},
    }


def _sha256(shown: list[Any]) -> str:
    return sha256(dump(shown).encode()).hexdigest()
