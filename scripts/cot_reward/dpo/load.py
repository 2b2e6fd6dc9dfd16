"""The rows of stage 3, read and checked by one process for all, before a model is loaded."""

import sys
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import AutoProcessor, ProcessorMixin
from trl import ModelConfig

from cot_reward.dpo.collator import text_of
from cot_reward.dpo.rows import Pairs, load_pairs, template_warning
from cot_reward.dpo.settings import PairConfig, ScriptArguments
from cot_reward.errors import UserError

T = TypeVar("T")


def load_train_and_eval(
    script: ScriptArguments, training: PairConfig, model: ModelConfig
) -> tuple[Pairs, Pairs | None]:
    """The rows to train on and those to evaluate on, checked by one process for all."""

    @cache
    def processor() -> Any:
        return load_processor(training, model)

    def count(row: dict[str, Any], sizes: list[tuple[int, int]]) -> int:
        # A picture is here a mark without content: only the placeholders are counted.
        text = text_of(row | {"images": [None] * len(sizes)}, processor())
        if not hasattr(processor(), "_get_num_multimodal_tokens"):
            raise UserError("--max_length: this processor does not tell how long images are")
        patches = processor()._get_num_multimodal_tokens(
            image_sizes=[(height, width) for width, height in sizes]
        )
        prompt, *responses = (
            len(processor().tokenizer(text[part], add_special_tokens=False)["input_ids"])
            for part in ("prompt", "chosen", "rejected")
        )
        # The template writes one token for each image, the processor as many as it has.
        return sum(patches.num_image_tokens) - len(sizes) + prompt + max(responses)

    def read(path: str) -> Pairs:
        return load_pairs(
            path,
            script.image_folder,
            max_pixels=script.image_max_pixels,
            max_length=training.max_length,
            count_tokens=count,
            skip_bad_rows=script.skip_bad_rows,
        )

    def both() -> tuple[Pairs, Pairs | None]:
        train = read(script.data_path)
        held_out = read(script.eval_data_path) if script.eval_data_path else None
        for pairs, path in ((train, script.data_path), (held_out, script.eval_data_path)):
            if pairs and pairs.problems:
                print(f"{path}: goes on without {len(pairs.problems)} bad rows", file=sys.stderr)
        if warning := template_warning(script.data_path, script.eval_data_path):
            print(warning, file=sys.stderr)
        return train, held_out

    return by_main(both)


def load_processor(training: PairConfig, model: ModelConfig) -> Any:
    """The model's processor. Raises UserError when there is none."""
    name = str(model.model_name_or_path)
    try:
        processor = AutoProcessor.from_pretrained(
            name, revision=model.model_revision, trust_remote_code=training.trust_remote_code
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"--model_name_or_path {name}: cannot be loaded: {reason}") from None
    if not isinstance(processor, ProcessorMixin):
        raise UserError(
            f"--model_name_or_path {name}: is no vision-language model with a processor"
        )
    return processor


def by_main(work: Callable[[], T]) -> T:
    """What `work` gives the main process, in every process; its UserError is told once."""
    state = PartialState()
    box: list[Any] = [None]
    if state.is_main_process:
        try:
            box = [work()]
        except UserError as error:
            box = [error]
    broadcast_object_list(box)
    if isinstance(box[0], UserError):
        raise box[0] if state.is_main_process else SystemExit(2)
    result: T = box[0]
    return result
