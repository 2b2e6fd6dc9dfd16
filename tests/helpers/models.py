"""Tiny models with random weights."""

from pathlib import Path

from helpers.environments import REPO


def save_untrained_base(folder: Path, seed: int = 0, family: str = "qwen2_5_vl") -> Path:
    """The demo's base with random weights, saved as the trained one is."""
    import torch
    from cot_reward.demo import tiny_qwen
    from cot_reward.demo.settings import ModelSizes, WorldSettings

    template = WorldSettings(template=REPO / "configs/demo/template.txt").read_template()
    sizes = ModelSizes()
    torch.manual_seed(seed)
    tokenizer = tiny_qwen.build_tokenizer(template, sizes.vocab, family)
    tiny_qwen.build_model(tokenizer, sizes, family).save_pretrained(folder)
    tiny_qwen.build_processor(tokenizer, family).save_pretrained(folder)
    return folder
