"""LLaMA-Factory's template for a model: the markup of its chats, which a wrong one trains away."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from cot_reward.errors import UserError

# By the model_type of a configuration; the first one is the one to take. A template with "nothink"
# leaves <think> to the texts: the other ones of these families write an empty block where
# a text has none.
TEMPLATES = {
    "qwen2_vl": ("qwen2_vl",),
    "qwen2_5_vl": ("qwen2_vl",),
    "qwen3_vl": ("qwen3_vl_nothink", "qwen3_vl"),
    "qwen3_5": ("qwen3_5_nothink", "qwen3_5"),
}


def check_template(model: Path, template: Any) -> None:
    """Raise UserError where a training's template is another family's than its model's.

    LLaMA-Factory trains all the same, and the model later is shown other markup. Models that are
    not in a folder, and families that are not known here, pass.
    """
    kind = _model_type(model)
    known = TEMPLATES.get(kind)
    if known and template not in known:
        raise UserError(
            f"template {template} is not for the model in {model}, which is a {kind}: give "
            f"template={known[0]} (in a chain: --sft-template {known[0]})"
        )


def _model_type(model: Path) -> str:
    with suppress(OSError, ValueError, LookupError, TypeError):
        return str(json.loads((model / "config.json").read_text(encoding="utf-8"))["model_type"])
    return ""
