"""What of a model is trained: frozen parts and adapters."""

from pathlib import Path

from cot_reward.dpo import run
from helpers.dpo import trainer_for


def test_frozen_parts_and_adapters(base: Path, folder: Path, pairs: str, tmp_path: Path) -> None:
    frozen = ["--freeze_vision_tower", "--freeze_multi_modal_projector"]
    trainer, _ = trainer_for(base, folder, pairs, tmp_path / "a", *frozen)
    names = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert names
    assert not [name for name in names if "visual" in name]
    trainer, _ = trainer_for(base, folder, pairs, tmp_path / "b", frozen[0])
    names = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert all("merger" in name for name in names if "visual" in name)
    assert any("merger" in name for name in names)

    trainer, parsed = trainer_for(base, folder, pairs, tmp_path / "c", "--use_peft", *frozen)
    names = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert names
    assert all("lora" in name and "visual" not in name for name in names)
    run.train(trainer, *parsed)
    assert (tmp_path / "c/adapter_model.safetensors").is_file()
    assert (tmp_path / "c/processor_config.json").is_file()
