"""The model families whose prompts can be shared: a file each, with the same few names.

    MODEL_TYPES                           values of a configuration's model_type
    TEXT_CONFIG, VISION_CONFIG            of the toy model of the start-up check, over `toy`'s
    attention_masks(layout)               what the text model takes as its attention mask
    attach(backbone)                      replaces forwards of single layers, once

A new family is a new file and its line in FAMILIES. `selfcheck` proves it at every start, and
`tests/dpo/test_shared_prefix.py` proves losses and gradients.
"""

from types import ModuleType

from transformers import PretrainedConfig

from cot_reward.dpo.families import qwen2_vl, qwen3_5, qwen3_vl

FAMILIES: tuple[ModuleType, ...] = (qwen2_vl, qwen3_vl, qwen3_5)


def family_of(config: PretrainedConfig) -> ModuleType | None:
    """The family of a model by its configuration; None for a family that is not known here."""
    return next((family for family in FAMILIES if config.model_type in family.MODEL_TYPES), None)
