"""Questions to sample: raw, judged and published rows -> prompts with images and a label.

A comparison is asked in both presentation orders. A question that comes twice is asked once.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from datasets import Dataset

from cot_reward.errors import UserError
from cot_reward.grpo.settings import GrpoSettings
from cot_reward.media.paths import media_path, media_prefix
from cot_reward.records import Comparison, Task, as_tuple, placeholder_in
from cot_reward.rows.adapters import Adapter, adapter_for, is_judged
from cot_reward.rows.held_out import HeldOut, captions_of, keys_of, pictures_of
from cot_reward.rows.labels import FileLabels, TieError, parse_meanings
from cot_reward.rows.preference_forms import prompt_messages
from cot_reward.rows.reading import read_rows
from cot_reward.rows.validation import check_compared_media, check_prompt, form_of
from cot_reward.store import dump
from cot_reward.tasks import TASKS
from cot_reward.tasks.prompts import IMAGE, check_template, render, shown_media, template_hash
from cot_reward.training.rows import describe_problems, inspect_images, printable

_ANSWER_TAGS = "<answer>", "</answer>"


@dataclass(frozen=True)
class Question:
    """A prompt, its images in the order shown, and the better candidate as shown, 1 or 2."""

    task: str
    prompt: str
    images: tuple[str, ...]
    label: int

    @property
    def asked(self) -> tuple[str, str, tuple[str, ...]]:
        """What the model is asked, without the label."""
        return self.task, self.prompt, self.images


@dataclass
class Questions:
    """The questions of some files, and what could not be used.

    `templates`: task -> the one that raw and judged rows are asked with; published rows have
    prompts of their own. `repeated`: rows that ask nothing new. `held_out`: rows about comparisons
    of --exclude.
    """

    rows: list[Question] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    ties: int = 0
    repeated: int = 0
    held_out: int = 0
    templates: dict[str, str] = field(default_factory=dict)

    def dataset(self) -> Dataset:
        """Columns `prompt` (messages), `image_paths`, `task`, `label` and `digest`."""
        return Dataset.from_list(
            [
                {
                    "prompt": prompt_messages({"problem": question.prompt}),
                    "image_paths": list(question.images),
                    "task": question.task,
                    "label": question.label,
                    "digest": digest,
                }
                for question, digest in zip(self.rows, self.digests, strict=True)
            ]
        )


def read_questions(
    files: Sequence[str],
    settings: GrpoSettings,
    templates: Mapping[str, str],
    held_out: HeldOut | None = None,
) -> Questions:
    """The questions of the files, with every image decoded once. `templates`: task -> template.

    Rows about comparisons of `held_out` are left out.

    Raises UserError with the number of bad rows of a file and the first ten, unless
    `skip_bad_rows`, for labels of unknown meaning, and when nothing is left.
    """
    folder = Path(settings.image_folder)
    if not folder.is_dir():
        raise UserError(f"--image_folder {folder}: no such folder")
    prefix = media_prefix(settings.raw_root, folder)
    # A name that is not known is the user's mistake, and not that of a row.
    if settings.adapter is not None:
        adapter_for({}, settings.adapter)
    if settings.task is not None and settings.task not in TASKS:
        raise UserError(f"unknown --task '{settings.task}'; known: {', '.join(TASKS)}")
    result = Questions()
    found: dict[tuple[Any, ...], tuple[Question, str]] = {}
    for name in files:
        path = Path(name)
        problems: dict[int, str] = {}
        read: list[tuple[int, Question]] = []
        total = 0
        reader, captions = _FileReader(settings, templates, prefix), captions_of(path)
        for number, row in read_rows(path):
            total += 1
            try:
                if isinstance(row, ValueError):
                    raise row
                if held_out and held_out.look_up(
                    keys_of(row, prefix, captions), pictures_of(row, prefix)
                ):
                    result.held_out += 1
                    continue
                read += [(number, question) for question in reader.questions(row)]
            except TieError:
                result.ties += 1
            except (ValueError, UserError, LookupError, TypeError, AttributeError) as error:
                # An adapter trusts the form of a row, so that a wrong form raises anything.
                is_told = isinstance(error, ValueError | UserError)
                problems[number] = str(error) if is_told else f"of no known form: {error!r}"
        reader.labels.check(path)
        result.templates |= reader.used_templates
        images = {image for _, question in read for image in question.images}
        seen = inspect_images(images, folder, settings.image_max_pixels)
        for number, question in read:
            shown = [seen[image] for image in question.images]
            if bad := next((what for what in shown if isinstance(what, str)), ""):
                problems[number] = bad
                continue
            before = found.setdefault(question.asked, (question, f"{path}:{number}"))
            if before[0].label != question.label:
                problems[number] = f"{before[1]} has the same question with the other label"
            elif before[0] is question:
                result.rows.append(question)
                result.digests.append(_digest(question, [what[0] for what in shown]))
            else:
                result.repeated += 1
        problems = {number: printable(what) for number, what in problems.items()}
        if problems and not settings.skip_bad_rows:
            raise UserError(describe_problems(path, problems, total))
        result.problems += [f"{path}:{number}: {what}" for number, what in sorted(problems.items())]
    if not result.rows:
        first = f"; the first: {result.problems[0]}" if result.problems else ""
        raise UserError(
            f"{', '.join(files)}: no question is left, {len(result.problems)} bad rows, "
            f"{result.ties} ties, {result.held_out} held out{first}"
        )
    result.rows, result.digests = result.rows[: settings.limit], result.digests[: settings.limit]
    return result


class _FileReader:
    """Reads the rows of one file. `prefix`: from the media root to the paths of raw rows."""

    def __init__(self, settings: GrpoSettings, templates: Mapping[str, str], prefix: str) -> None:
        self._settings, self._templates, self._prefix = settings, templates, prefix
        self._adapter: Adapter | None = None
        self.labels = FileLabels(parse_meanings(settings.labels))
        self.used_templates: dict[str, str] = {}

    def questions(self, row: dict[str, Any]) -> Iterator[Question]:
        """The questions of one row. Raises ValueError or UserError for one that cannot be read."""
        if "problem" in row and "solution" in row:
            yield from self._published(row)
            return
        if self._settings.task is not None:
            row.setdefault("task", self._settings.task)
        if is_judged(row) and (form := form_of(row)) != "think":
            raise ValueError(f"texts of the form {form!r}; GRPO rewards chains of thought")
        if is_judged(row) and row["task"] in TASKS:
            self._check_template(row, self._template_for(TASKS[row["task"]]))
        if self._adapter is None:
            # One for the file: that of judged rows learns the wording of their prompts.
            self._adapter = adapter_for(row, self._settings.adapter, self._templates, self.labels)
        comparison = self._adapter(row, self._prefix)
        template = self._template_for(TASKS[comparison.task])
        self.used_templates[comparison.task] = template
        yield from self._presented(comparison, template)

    def _check_template(self, row: Mapping[str, Any], template: str) -> None:
        sampled = row.get("template_hash")
        if sampled and sampled != template_hash(template):
            raise ValueError(
                f"the row was sampled with another prompt (template_hash {sampled}) than this "
                f"run's ({template_hash(template)}): name that prompt with --template"
            )

    def _template_for(self, task: Task) -> str:
        template = self._templates[task.name]
        check_template(template, task)
        return template

    def _presented(self, comparison: Comparison, template: str) -> Iterator[Question]:
        for order in self._settings.asked_orders:
            prompt = render(comparison, order, template)
            images = shown_media(comparison, order)
            check_prompt(prompt, images, ())
            yield Question(comparison.task, prompt, images, comparison.presented(order)[1])

    def _published(self, row: Mapping[str, Any]) -> Iterator[Question]:
        """The questions of a row with `problem`, `solution` and `images`.

        The prompt stays as it is. With candidates that are images the swapped order is asked by
        exchanging the images; two answers stand in the prompt, so that only this order is asked.
        """
        prompt, images = row["problem"], row.get("images")
        if not isinstance(prompt, str) or not isinstance(images, list):
            raise ValueError("'problem' must be the prompt, and 'images' a list of paths")
        if row.get("videos"):
            raise ValueError("the row has videos; GRPO trains on images, or on a video's frames")
        task, label = _solved(row["solution"])
        paths = tuple(media_path(path, self._prefix) for path in images)
        context, candidates = check_compared_media(paths, (), task)
        if not placeholder_in(prompt):
            # In front, as where a template has none.
            prompt = IMAGE * len(paths) + prompt
        check_prompt(prompt, paths, ())
        shown = {"given": Question(task.name, prompt, paths, label)}
        if candidates:
            swapped = (*context, *as_tuple(candidates[1]), *as_tuple(candidates[0]))
            shown["swapped"] = Question(task.name, prompt, swapped, 3 - label)
        elif "given" not in self._settings.asked_orders:
            raise ValueError("the answers stand in the prompt, so that they cannot be swapped")
        yield from (shown[order] for order in self._settings.asked_orders if order in shown)


def _solved(solution: Any) -> tuple[Task, int]:
    """The task and the better candidate of a published row.

    `solution` is an answer string of a task ("Image 1 is better"), alone or in a text with exactly
    one answer block. Raises ValueError for anything else: an answer is never guessed.
    """
    if not isinstance(solution, str):
        raise ValueError(f"'solution' must be a string, not {solution!r:.60}")
    text = solution
    opening, closing = _ANSWER_TAGS
    if (text.count(opening), text.count(closing)) == (1, 1):
        text = text.partition(opening)[2].partition(closing)[0]
    for task in TASKS.values():
        if text.strip() in task.answers:
            return task, task.answers.index(text.strip()) + 1
    known = ", ".join(dict.fromkeys(repr(task.answers[0]) for task in TASKS.values()))
    raise ValueError(f"'solution' is {solution!r:.60}; it must be an answer such as {known}")


def _digest(question: Question, images: list[str]) -> str:
    """The sha256 of what the question depends on, with the contents of its images."""
    shown = [question.task, question.prompt, question.label, images]
    return sha256(dump(shown).encode()).hexdigest()
