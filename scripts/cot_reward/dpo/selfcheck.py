"""A check at every start that a shared prompt gives TRL's own log-probs, on a toy model.

The shared-prefix forward relies on the insides of TRL and transformers.
"""

import inspect
from typing import Any

import torch
import transformers
import trl
from transformers import PretrainedConfig
from trl import DPOTrainer
from trl.trainer.utils import add_fused_lm_head

from cot_reward.dpo.shared_prefix import attach
from cot_reward.errors import UserError

# Log-probs of a toy model in fp32 may differ by this much.
_TOLERANCE = 1e-4


def check(config: PretrainedConfig) -> None:
    """Score a pair both ways on a model of a few thousand weights, and compare.

    The forward above relies on the insides of TRL and transformers. Raises UserError when they are
    not those that it was made for.
    """
    versions = f"TRL {trl.__version__} and transformers {transformers.__version__}"
    way_out = "install the versions of requirements.txt, or go on without by --shared_prefix false"
    try:
        _check_names()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            difference = _difference(_toy(config))
    except Exception as error:
        raise UserError(
            f"with {versions} prompts cannot be shared ({type(error).__name__}: {error}); {way_out}"
        ) from error
    if not difference < _TOLERANCE:
        raise UserError(
            f"with {versions} a shared prompt gives other log-probs than stock TRL: they differ by "
            f"{difference:.2g}; {way_out}"
        )


# What functions of the trainers read or call, and `PairTrainer` relies on.
_RELIED_ON: list[tuple[type, str, tuple[str, ...]]] = [
    (DPOTrainer, "__init__", ("_prepare_dataset", "_precompute_ref_logps")),
    (DPOTrainer, "_compute_loss", ("loss_types", "loss_weights", "precompute_ref_logps")),
    (DPOTrainer, "compute_ref_log_probs", ("log_probs", "ld_alpha")),
    (DPOTrainer, "log", ("_metrics",)),
    (transformers.Trainer, "_run_epoch", ("get_batch_samples", "training_step")),
    (transformers.Trainer, "training_step", ("current_gradient_accumulation_steps",)),
    (transformers.Trainer, "train", ("_load_from_checkpoint",)),
]


def _check_names() -> None:
    """Raise AttributeError when a function of the trainers does not do what is relied on."""
    for trainer, function, names in _RELIED_ON:
        code = inspect.unwrap(getattr(trainer, function)).__code__
        for name in names:
            if name not in code.co_names:
                raise AttributeError(f"{trainer.__name__}.{function} knows no {name}")


_IMAGE, _MERGE, _GRID = 1, 2, (1, 4, 6)
_TOY_TEXT = {
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
_TOY_VISION = {"depth": 1, "num_heads": 2, "patch_size": 4, "spatial_merge_size": _MERGE}
# Qwen2-VL's names, then Qwen2.5-VL's: each configuration passes over what it does not know.
_TOY_VISION |= {"embed_dim": 16, "mlp_ratio": 1}
_TOWERS: dict[str, dict[str, Any]] = {
    "qwen2_vl": {"hidden_size": 16},
    "qwen2_5_vl": {
        "hidden_size": 16,
        "intermediate_size": 16,
        "out_hidden_size": 16,
        "window_size": 16,
        "fullatt_block_indexes": [0],
    },
}


def _toy(config: PretrainedConfig) -> Any:
    """A model of the same class with random weights."""
    made = type(config)(
        text_config=_TOY_TEXT,
        vision_config=_TOY_VISION | _TOWERS[config.model_type],
        image_token_id=_IMAGE,
        video_token_id=2,
        vision_start_token_id=3,
        vision_end_token_id=4,
    )
    model = transformers.AutoModelForImageTextToText.from_config(made, dtype=torch.float32)
    add_fused_lm_head(model, outputs=("log_probs",))
    return model.eval()


def _difference(model: Any) -> float:
    """The largest difference between the log-probs of a shared row and of two stock rows."""
    tokens = _GRID[1] * _GRID[2] // _MERGE**2
    prompt = torch.tensor([[5, 3, *[_IMAGE] * tokens, 4, 6, 7]])
    types = (prompt == _IMAGE).int()
    responses = torch.tensor([[8, 9, 10, 11], [12, 9, 13, 0]])
    real = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    pixels = torch.randn(_GRID[1] * _GRID[2], 3 * 2 * 4 * 4)
    grid = torch.tensor([_GRID])
    labels = responses.masked_fill(real == 0, -100)
    with torch.no_grad():
        double = prompt.expand(2, -1)
        stock = model(
            input_ids=torch.cat((double, responses), 1),
            attention_mask=torch.cat((torch.ones_like(double), real), 1),
            mm_token_type_ids=torch.cat((types.expand(2, -1), torch.zeros_like(responses)), 1),
            pixel_values=torch.cat((pixels, pixels)),
            image_grid_thw=torch.cat((grid, grid)),
            labels=torch.cat((torch.full_like(double, -100), labels), 1),
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
