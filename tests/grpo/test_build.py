"""What the trainer of GRPO is built from, and models that it is not built from."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from cot_reward.errors import UserError
from helpers.grpo import trainer_for


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "cannot be trained themselves; name the model that it was made from"),
        (("--use_peft", "--merge_adapter"), "would be rounded when it is merged"),
    ],
)
def test_a_quantized_model_is_refused_before_it_is_loaded(
    speaker: Path, comparisons: Path, tmp_path: Path, flags: tuple[str, ...], message: str
) -> None:
    made = tmp_path / "quantized"
    shutil.copytree(speaker, made)
    config = json.loads((made / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (made / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"quantized: its weights are quantized") as caught:
        trainer_for(made, comparisons, tmp_path / "out", *flags)
    assert message in str(caught.value)


def test_adapters_on_a_bf16_base_are_fp32(speaker: Path, comparisons: Path, tmp_path: Path) -> None:
    flags = ("--use_peft", "--dtype", "bfloat16")
    trainer = trainer_for(speaker, comparisons, tmp_path / "out", *flags)[0]
    dtypes = {(p.requires_grad, p.dtype) for p in trainer.model.parameters()}
    assert dtypes == {(True, torch.float32), (False, torch.bfloat16)}
