"""The model card: what it tells of base, data, settings and result, and what cannot spoil it."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from cot_reward.dpo import run, trl_settings
from cot_reward.dpo.card import FinishedRun, model_card
from cot_reward.training.card_parts import block, code, masked_command
from helpers.dpo import trainer_for

HISTORY = [
    {"step": 1, "loss": 2.5, "rewards/accuracies": 0.25, "rewards/margins": 0.0},
    {"step": 2, "eval_rewards/accuracies": 0.625},
    {"step": 4, "loss": 1.5, "rewards/accuracies": 0.75, "rewards/margins": 0.5},
]


def card(tmp_path: Path, base: str, *flags: str, argv: tuple[str, ...] = ()) -> str:
    data = tmp_path / "train.jsonl"
    data.write_text("{}\n")
    given = ["--data_path", str(data), "--model_name_or_path", base, "--output_dir", "runs/mine"]
    parsed = trl_settings.parse([*given, "--use_cpu", "--bf16", "false", *flags])
    return model_card(*parsed, FinishedRun(12, 3, 4, 60.4, 2, HISTORY, argv))


def header(text: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(text.split("---\n")[1])
    return found


def test_a_card_tells_what_the_model_was_trained_from(tmp_path: Path) -> None:
    stage1, stage2 = tmp_path / "stage1", tmp_path / "stage2"
    for folder, parent, license_name in (
        (stage1, "some/base-7b", "apache-2.0"),
        (stage2, str(stage1), "other"),
    ):
        folder.mkdir()
        head = yaml.safe_dump({"base_model": parent, "license": license_name})
        (folder / "README.md").write_text(f"---\n{head}---\n# x\n")
    (stage2 / "all_results.json").write_text(json.dumps({"epoch": 3.0, "train_loss": 0.4231234567}))
    summary = {"pair_kinds": {"same_model": 5, "published": 7}}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    text = card(tmp_path, str(stage2), "--beta", "0.3", "--loss_type", "sigmoid", "sft")
    # The base is a folder: the Hub's model that it comes from is found through the folders' cards.
    assert header(text) == {
        "base_model": "some/base-7b",
        "library_name": "transformers",
        "license": "apache-2.0",
        "pipeline_tag": "image-text-to-text",
        "tags": ["trl", "dpo", "reward-model"],
    }
    digest = hashlib.sha256(b"{}\n").hexdigest()
    for line in (
        "# `mine`",
        f"- Base, and reference of DPO: `{stage2}`",
        "- `all_results.json` of the base: epoch `3`, train_loss `0.423123`",
        f"- Data: `{tmp_path}/train.jsonl`, 12 pairs (3 bad rows were left out), sha256 `{digest}`",
        "- Kinds of pairs, by the summary beside the data: `same_model` `5`, `published` `7`",
        "| loss | `1 x sigmoid + 1 x sft` |",
        "| beta | `0.3` |",
        "| reward accuracy | 0.25 (step 1) | 0.75 (step 4) |",
        "| reward accuracy, held out | 0.625 (step 2) | 0.625 (step 2) |",
        "| loss | 2.5 (step 1) | 1.5 (step 4) |",
        "scripts/serve.sh runs/mine",
    ):
        assert line in text.splitlines()
    assert "\n4 steps in 60 s." in text


def test_what_is_not_known_is_left_out(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    found = header(card(tmp_path, str(base)))
    assert not {"base_model", "license"} & found.keys()
    # A card that names itself.
    (base / "README.md").write_text(f"---\nbase_model: {base}\nlicense: [\n---\n")
    assert "base_model" not in header(card(tmp_path, str(base)))
    (base / "README.md").write_text(f"---\nbase_model: {base}\nlicense: mit\n---\n")
    found = header(card(tmp_path, str(base)))
    assert "base_model" not in found
    assert found["license"] == "mit"
    assert header(card(tmp_path, "some/base"))["base_model"] == "some/base"
    adapter = card(tmp_path, "some/base", "--use_peft")
    assert header(adapter)["library_name"] == "peft"
    assert "serve.sh" not in adapter


def test_no_text_breaks_out_of_the_card(tmp_path: Path) -> None:
    base = tmp_path / "base`` <img src=x>"
    base.mkdir()
    (base / "summary.json").write_text(json.dumps({"stage": "a`\n\n# Heading\n|<script>"}))
    (base / "README.md").write_text(
        '---\nbase_model: "x/y\\n---\\n# Heading"\nlicense: "m: |"\n---\n'
    )
    (tmp_path / "summary.json").write_text(json.dumps({"pair_kinds": {"`\n# Heading": "`<b>"}}))
    text = card(tmp_path, str(base), argv=("x", "```\n# Heading\n```"))
    assert header(text)["license"] == "m: |"
    assert "base_model" not in header(text)
    assert "````bash\nx '```\n# Heading\n```'\n````" in text
    rest = text.replace("# Heading\n```'", "")
    assert not [line for line in rest.splitlines() if line.startswith("# Heading")]
    assert code("a`\n# b") == "`` a` # b ``"
    assert code("`a`") == "`` `a` ``"
    assert block("````").startswith("`````bash\n")


@pytest.mark.parametrize(
    ("word", "shown"),
    [
        (["--hub_token", "hf_abc"], "--hub_token '***'"),
        (["--hub-token=hf_abc"], "'--hub-token=***'"),
        (["--wandb_API_KEY", "hf_abc"], "--wandb_API_KEY '***'"),
        (["--extra", '{"api_key": "hf_abc", "a": 1}'], """--extra '{"api_key": ***, "a": 1}'"""),
        (["--extra", "lr=1,password=hf_abc"], "--extra 'lr=1,password=***'"),
        (["--endpoint", "https://me:hf_abc@host/x"], "--endpoint 'https://***@host/x'"),
        (["--pad_token", "--beta", "0.1"], "--pad_token --beta 0.1"),
        (["--data_path", "runs/tokens/train.jsonl"], "--data_path runs/tokens/train.jsonl"),
    ],
)
def test_secrets_are_masked(word: list[str], shown: str) -> None:
    assert masked_command(["DPO_VL.py", *word, "--seed", "1"]) == f"DPO_VL.py {shown} --seed 1"


def test_a_run_leaves_its_card_and_no_secret(
    base: Path, folder: Path, pairs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["scripts/DPO_VL.py", "--hub_token", "hf_abc"])
    # PEFT edits the card when it saves an adapter, and TRL writes one with each checkpoint.
    flags = ("--use_peft", "--save_strategy", "steps", "--save_steps", "1")
    trainer, parsed = trainer_for(base, folder, pairs, tmp_path / "out", *flags)
    run.train(trainer, *parsed)
    text = (tmp_path / "out/README.md").read_text()
    assert header(text)["tags"] == ["trl", "dpo", "reward-model", "lora"]
    assert f"- Data: `{pairs}`, 8 pairs" in text
    assert "text-generation" not in text
    assert "```bash\nscripts/DPO_VL.py --hub_token '***'\n```" in text
    for name in ("README.md", "summary.json"):
        assert "hf_abc" not in (tmp_path / "out" / name).read_text()
