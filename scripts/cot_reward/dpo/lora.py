"""LoRA adapters: merged into their base model after training."""

from pathlib import Path
from typing import Any

import torch
from trl.trainer.utils import create_model_from_path

from cot_reward.dpo.distributed import unsharded_models


def merge_adapter(output: Path, base: str, model_init_kwargs: dict[str, Any]) -> None:
    """Write the base model with the adapter of output/adapter merged into it.

    The base is loaded again: the weights in training may be sharded or quantized.
    """
    from peft import PeftModel

    # An adapter of an earlier run in this folder would be loaded on top of the merged weights.
    for stale in [output / "adapter_config.json", *output.glob("adapter_model.*")]:
        stale.unlink(missing_ok=True)
    with unsharded_models(), torch.no_grad():
        model = create_model_from_path(base, **model_init_kwargs | {"device_map": None})
        merged: Any = PeftModel.from_pretrained(model, str(output / "adapter")).merge_and_unload()
    merged.save_pretrained(output)
