"""The check at every start finds a TRL or transformers that has changed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from cot_reward.dpo import selfcheck, shared_prefix
from cot_reward.dpo.families.layout import Layout
from cot_reward.errors import UserError
from transformers import AutoConfig
from trl import DPOTrainer


@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5"])
@pytest.mark.parametrize("fault", ["positions", "mask", "head", "argument", "weights"])
def test_a_changed_internal_is_an_error_at_start(
    bases: dict[str, Path], monkeypatch: pytest.MonkeyPatch, kind: str, fault: str
) -> None:
    config = AutoConfig.from_pretrained(bases[kind])
    selfcheck.check(config)
    if fault == "positions":
        stock = shared_prefix.row_positions
        monkeypatch.setattr(
            shared_prefix, "row_positions", lambda *a: stock(*a) + (torch.arange(15) > 12)
        )
    elif fault == "mask":
        stock_mask = Layout.response_mask
        monkeypatch.setattr(
            Layout, "response_mask", lambda layout: torch.ones_like(stock_mask(layout)).bool()
        )
    elif fault == "head":
        monkeypatch.setattr(selfcheck, "add_fused_lm_head", lambda *_, **__: None)
    elif fault == "weights":
        # A TRL whose loss no longer reads the weights that we set for a step.
        monkeypatch.setattr(DPOTrainer, "_compute_loss", lambda self, *_: self.args.loss_weights)
    else:

        def without(backbone: Any, *_: Any) -> None:
            raise TypeError("get_rope_index() got an unexpected keyword argument")

        monkeypatch.setattr(shared_prefix, "row_positions", without)
    with pytest.raises(UserError, match=r"TRL 1\.\S+ and transformers .*--shared_prefix false"):
        selfcheck.check(config)


def test_the_check_leaves_the_random_numbers_alone(bases: dict[str, Path]) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    selfcheck.check(AutoConfig.from_pretrained(bases["qwen2_vl"]))
    assert torch.equal(torch.rand(3), expected)
