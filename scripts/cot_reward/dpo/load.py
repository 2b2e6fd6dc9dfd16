"""The rows of stage 3, read and checked by one process for all, before a model is loaded."""

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trl import ModelConfig

from cot_reward.dpo.collator import apply_template
from cot_reward.dpo.groups import make_rows
from cot_reward.dpo.pairs import Pairs, TokenCount, load_pairs, template_warning
from cot_reward.dpo.settings import DpoSettings
from cot_reward.dpo.steps import announce
from cot_reward.dpo.trl_settings import PairConfig
from cot_reward.errors import UserError
from cot_reward.training.cluster import check_files, check_start
from cot_reward.training.distributed import broadcast_from_main
from cot_reward.training.model import check_folders, load_processor

_SEEN_IMAGES = "images.sqlite"


def load_train_and_eval(
    settings: DpoSettings, training: PairConfig, model_config: ModelConfig
) -> tuple[Pairs, Pairs | None]:
    """The rows to train on and the rows to evaluate on; the second are None without any.

    Prints how many pairs and steps they are. Raises UserError for bad rows, see `pairs.load_pairs`,
    for a folder that is no whole model, and for an output folder that cannot be written to.
    """
    count_tokens = token_counter(lambda: load_processor(training, model_config))
    wants_tokens = training.max_length or settings.max_row_tokens
    cache_folder = settings.cache_folder(Path(str(training.output_dir)))

    def read(path: str) -> Pairs:
        pairs = load_pairs(
            path,
            settings.image_folder,
            max_pixels=settings.image_max_pixels,
            max_length=training.max_length,
            count_tokens=count_tokens if wants_tokens else None,
            skip_bad_rows=settings.skip_bad_rows,
            seen_images=cache_folder / _SEEN_IMAGES,
        )
        if pairs.problems:
            print(f"{path}: {len(pairs.problems)} bad rows are skipped", file=sys.stderr)
        return pairs

    def read_both() -> tuple[Pairs, Pairs | None]:
        check_folders(Path(str(model_config.model_name_or_path)), Path(str(training.output_dir)))
        train = read(settings.data_path)
        held_out = read(settings.eval_data_path) if settings.eval_data_path else None
        if warning := template_warning(settings.data_path, settings.eval_data_path):
            print(warning, file=sys.stderr)
        groups = len(make_rows(train.rows, **settings.of_rows())) if settings.groups else None
        announce(training, len(train.rows), train.comparisons, groups)
        if warning := _long_pairs_warning(train, settings.max_row_tokens):
            print(warning, file=sys.stderr)
        return train, held_out

    check_start(settings, training, model_config)
    train, held_out = broadcast_from_main(read_both)
    rows = train.rows + (held_out.rows if held_out else [])
    images = (path for row in rows for path in row["image_paths"])
    check_files(training, images, Path(settings.image_folder))
    return train, held_out


def _long_pairs_warning(pairs: Pairs, max_row_tokens: int | None) -> str:
    """A word about pairs that alone are longer than a row should be; "" without any."""
    if max_row_tokens is None:
        return ""
    lengths = [sum(pair["tokens"].values()) for pair in pairs.rows]
    long = [length for length in lengths if length > max_row_tokens]
    if not long:
        return ""
    return (
        f"warning: {len(long)} pairs alone have more than {max_row_tokens} tokens "
        f"(--max_row_tokens), up to {max(long)}; each is a row of its own"
    )


def token_counter(load: Callable[[], Any]) -> TokenCount:
    """A function that counts the tokens of a row by the processor that `load` gives.

    The processor is loaded with the first row. Raises UserError when it cannot tell how many
    tokens an image has.
    """
    load = functools.cache(load)

    def count(row: dict[str, Any], sizes: list[tuple[int, int]]) -> dict[str, int]:
        processor = load()
        # The template writes one placeholder for an image, whatever stands in `images`.
        text = apply_template(row | {"images": [None] * len(sizes)}, processor)
        if not hasattr(processor, "_get_num_multimodal_tokens"):
            raise UserError(
                "--max_length, --max_row_tokens: this processor does not tell how long images are"
            )
        images = processor._get_num_multimodal_tokens(
            image_sizes=[(height, width) for width, height in sizes]
        )
        counts = {
            part: len(processor.tokenizer(text[part], add_special_tokens=False)["input_ids"])
            for part in ("prompt", "chosen", "rejected")
        }
        # The prompt's own tokens already hold one placeholder for each image.
        counts["prompt"] += sum(images.num_image_tokens) - len(sizes)
        return counts

    return count
