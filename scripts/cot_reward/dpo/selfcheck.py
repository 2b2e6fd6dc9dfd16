"""A check at every start, on a toy model, that a shared prompt gives stock TRL's log-probs.

The shared-prefix forward and `PairTrainer` rely on internals of TRL and transformers.
"""

import inspect
from typing import Any

import torch
import transformers
import trl
from transformers import PretrainedConfig
from trl import DPOTrainer
from trl.trainer.utils import add_fused_lm_head

from cot_reward.dpo.families import family_of
from cot_reward.dpo.shared_prefix import attach
from cot_reward.errors import UserError

# The largest difference allowed between log-probs of the toy model in fp32.
_TOLERANCE = 1e-4


def check(config: PretrainedConfig) -> None:
    """Score a pair both ways on a model of a few thousand weights, and compare.

    Raises UserError when the results differ, or when TRL or transformers have changed in a part
    that we rely on.
    """
    versions = f"TRL {trl.__version__} and transformers {transformers.__version__}"
    advice = "install the versions of requirements.txt, or use --shared_prefix false"
    try:
        _check_functions()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            difference = _largest_difference(_toy_model(config))
    except Exception as error:
        raise UserError(
            f"with {versions} prompts cannot be shared ({type(error).__name__}: {error}); {advice}"
        ) from error
    if not difference < _TOLERANCE:
        raise UserError(
            f"with {versions} a shared prompt gives other log-probs than stock TRL: the difference "
            f"is {difference:.2g}; {advice}"
        )


# Names that functions of the trainers read or call; `PairTrainer` replaces or sets them.
_USED_NAMES: list[tuple[type, str, tuple[str, ...]]] = [
    (DPOTrainer, "__init__", ("_prepare_dataset", "_precompute_ref_logps")),
    (DPOTrainer, "_compute_loss", ("loss_types", "loss_weights", "precompute_ref_logps")),
    (DPOTrainer, "compute_ref_log_probs", ("log_probs", "ld_alpha")),
    (DPOTrainer, "log", ("_metrics",)),
    (transformers.Trainer, "_run_epoch", ("get_batch_samples", "training_step")),
    (transformers.Trainer, "training_step", ("current_gradient_accumulation_steps",)),
    (transformers.Trainer, "train", ("_load_from_checkpoint",)),
]


def _check_functions() -> None:
    """Raise AttributeError when a function of the trainers no longer uses one of its names."""
    for trainer, function, names in _USED_NAMES:
        code = inspect.unwrap(getattr(trainer, function)).__code__
        for name in names:
            if name not in code.co_names:
                raise AttributeError(f"{trainer.__name__}.{function} does not use {name}")


_IMAGE_TOKEN = 1
_MERGE_SIZE = 2
# Time, height and width of the image, in patches.
_GRID = (1, 4, 6)
_TEXT_CONFIG = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "initializer_range": 0.5,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
}
_VISION_CONFIG = {
    "depth": 1,
    "num_heads": 2,
    "patch_size": 4,
    "spatial_merge_size": _MERGE_SIZE,
    "hidden_size": 16,
    "out_hidden_size": 16,
    "intermediate_size": 16,
}


def _toy_model(config: PretrainedConfig) -> Any:
    """A tiny model of the same class with random weights."""
    family: Any = family_of(config)
    toy_config = type(config)(
        text_config=_TEXT_CONFIG | family.TEXT_CONFIG,
        vision_config=_VISION_CONFIG | family.VISION_CONFIG,
        image_token_id=_IMAGE_TOKEN,
        video_token_id=2,
        vision_start_token_id=3,
        vision_end_token_id=4,
    )
    model = transformers.AutoModelForImageTextToText.from_config(toy_config, dtype=torch.float32)
    add_fused_lm_head(model, outputs=("log_probs",))
    return model.eval()


def _largest_difference(model: Any) -> float:
    """The largest difference between the log-probs of a shared row and of two stock rows."""
    tokens = _GRID[1] * _GRID[2] // _MERGE_SIZE**2
    prompt = torch.tensor([[5, 3, *[_IMAGE_TOKEN] * tokens, 4, 6, 7]])
    types = (prompt == _IMAGE_TOKEN).int()
    responses = torch.tensor([[8, 9, 10, 11], [12, 9, 13, 0]])
    real = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    pixels = torch.randn(_GRID[1] * _GRID[2], 3 * 2 * 4 * 4)
    grid = torch.tensor([_GRID])
    labels = responses.masked_fill(real == 0, -100)
    with torch.no_grad():
        both_prompts = prompt.expand(2, -1)
        stock = model(
            input_ids=torch.cat((both_prompts, responses), 1),
            attention_mask=torch.cat((torch.ones_like(both_prompts), real), 1),
            mm_token_type_ids=torch.cat((types.expand(2, -1), torch.zeros_like(responses)), 1),
            pixel_values=torch.cat((pixels, pixels)),
            image_grid_thw=torch.cat((grid, grid)),
            labels=torch.cat((torch.full_like(both_prompts, -100), labels), 1),
            fused_lm_head=True,
        ).log_probs[:, -responses.shape[1] :]
        attach(model)
        last = prompt[:, -1:].expand(2, -1)
        shared = model(
            prompt_ids=prompt[:, :-1],
            prompt_mask=torch.ones_like(prompt[:, :-1]),
            prompt_mm_token_type_ids=types[:, :-1],
            widths=(5, 4),
            input_ids=torch.cat((last, responses), 1),
            pixel_values=pixels,
            image_grid_thw=grid,
            labels=torch.cat((torch.full_like(last, -100), labels), 1),
            fused_lm_head=True,
        ).log_probs
    return float((stock - shared).abs().max())
