"""The rows of stage 3, read and checked by one process for all, before a model is loaded."""

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trl import ModelConfig

from cot_reward.dpo.collator import apply_template
from cot_reward.dpo.pairs import Pairs, TokenCount, load_pairs, template_warning
from cot_reward.dpo.settings import DpoSettings
from cot_reward.dpo.steps import announce
from cot_reward.dpo.trl_settings import PairConfig
from cot_reward.errors import UserError
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
    cache_folder = settings.cache_folder(Path(str(training.output_dir)))

    def read(path: str) -> Pairs:
        pairs = load_pairs(
            path,
            settings.image_folder,
            max_pixels=settings.image_max_pixels,
            max_length=training.max_length,
            count_tokens=count_tokens,
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
        announce(training, len(train.rows), train.comparisons)
        return train, held_out

    return broadcast_from_main(read_both)


def token_counter(load: Callable[[], Any]) -> TokenCount:
    """A function that counts the tokens of a row by the processor that `load` gives.

    The processor is loaded with the first row. Raises UserError when it cannot tell how many
    tokens an image has.
    """
    load = functools.cache(load)

    def count(row: dict[str, Any], sizes: list[tuple[int, int]]) -> int:
        processor = load()
        # The template writes one placeholder for an image, whatever stands in `images`.
        text = apply_template(row | {"images": [None] * len(sizes)}, processor)
        if not hasattr(processor, "_get_num_multimodal_tokens"):
            raise UserError("--max_length: this processor does not tell how long images are")
        images = processor._get_num_multimodal_tokens(
            image_sizes=[(height, width) for width, height in sizes]
        )
        prompt, *responses = (
            len(processor.tokenizer(text[part], add_special_tokens=False)["input_ids"])
            for part in ("prompt", "chosen", "rejected")
        )
        # The prompt's own tokens already hold one placeholder for each image.
        return sum(images.num_image_tokens) - len(sizes) + prompt + max(responses)

    return count
