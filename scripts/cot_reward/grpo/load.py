"""The questions of a run, read and checked by one process for all, before a model is loaded."""

import sys
from pathlib import Path
from typing import Any

from trl import ModelConfig

from cot_reward.grpo.questions import Questions, read_questions
from cot_reward.grpo.settings import GrpoSettings
from cot_reward.rows.file_flags import held_out_files
from cot_reward.rows.held_out import HeldOut, exclude_warnings
from cot_reward.tasks.prompts import TEMPLATE_FILE, check_template_of_model, read_templates
from cot_reward.training.cluster import check_files, check_start
from cot_reward.training.distributed import broadcast_from_main
from cot_reward.training.model import check_folders


def load_train_and_eval(
    settings: GrpoSettings, training: Any, model_config: ModelConfig
) -> tuple[Questions, Questions | None]:
    """The questions to train on and those to evaluate on; the second are None without any.

    Raises UserError for bad rows, for a folder that is no whole model or was trained on another
    prompt, and for an output folder that cannot be written to.
    """
    model = Path(str(model_config.model_name_or_path))

    def read() -> tuple[Questions, Questions | None]:
        check_folders(model, Path(str(training.output_dir)))
        templates = read_templates(_template_files(settings, model))
        train = _read(settings.data_path, settings, templates, _excluded(settings))
        held_out = None
        if settings.eval_data_path:
            held_out = _read(settings.eval_data_path, settings, templates)
        check_template_of_model(str(model), train.templates)
        return train, held_out

    check_start(settings, training, model_config)
    train, held_out = broadcast_from_main(read)
    rows = train.rows + (held_out.rows if held_out else [])
    images = (path for row in rows for path in row.images)
    check_files(training, images, Path(settings.image_folder))
    return train, held_out


def _template_files(settings: GrpoSettings, model: Path) -> list[str]:
    """What --template names, or the file beside the model; none for our own templates."""
    beside = model / TEMPLATE_FILE
    return settings.template or ([str(beside)] if beside.is_file() else [])


def _excluded(settings: GrpoSettings) -> HeldOut | None:
    """The comparisons of --exclude. Raises UserError for a row that cannot be read."""
    if not settings.exclude:
        return None
    roots, folder = list(map(Path, settings.exclude_image_root)), Path(settings.image_folder)
    return HeldOut(held_out_files(settings.exclude, roots, settings.raw_root, folder), folder)


def _read(
    files: list[str],
    settings: GrpoSettings,
    templates: dict[str, str],
    held_out: HeldOut | None = None,
) -> Questions:
    questions = read_questions(files, settings, templates, held_out)
    if held_out:
        print(f"{questions.held_out} rows are about comparisons of --exclude, and are left out")
        for line in exclude_warnings(held_out.met, held_out.doubts, "the data"):
            print(line, file=sys.stderr)
    if questions.problems:
        print(f"{', '.join(files)}: {len(questions.problems)} bad rows are skipped; the first: "
              f"{questions.problems[0]}", file=sys.stderr)  # fmt: skip
    return questions
