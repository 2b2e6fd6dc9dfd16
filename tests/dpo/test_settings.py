"""Stage 3's flags and YAML keys, ours and TRL's, and the help texts."""

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from cot_reward.dpo import trl_settings
from cot_reward.dpo.settings import DpoSettings
from cot_reward.errors import UserError
from cot_reward.training.help_text import help_text
from helpers.environments import REPO

REQUIRED = ["--data_path", "x.jsonl", "--model_name_or_path", "x", "--use_cpu", "--bf16", "false"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--learning_rat", "1"], "unknown flag '--learning_rat'. Did you mean '--learning_rate'?"),
        (["--help-al"], "unknown flag '--help-al'. Did you mean '--help-all'?"),
        (["--data-pat=1"], "unknown flag '--data-pat'. Did you mean '--data-path'?"),
        (["stray"], "unexpected argument 'stray'"),
        (["--learning_rate", "fast"], "invalid float value: 'fast'"),
        (["--loss_type", "sigmoid", "sft", "--loss_weights", "1"], "same length as `loss_type`"),
        (["--image_max_pixels", "0"], "image_max_pixels is 0"),
        (["--config"], "expected one argument"),
        (["--resume_from_checkpoint", "true", "--output_dir", "gone"], "no checkpoint in gone"),
        (["--resume_from_checkpoint", "gone"], "gone: is not a complete checkpoint"),
        (["--config", "gone.yaml"], "gone.yaml: no such file"),
    ],
)
def test_bad_flags_are_one_message(flags: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        trl_settings.parse(REQUIRED + flags)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_yaml_then_flags(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("beta: 0.5\nloss_type: sft\nlearning_rate: 1e-6\nfreeze_vision_tower: false\n")
    flags = ["--config", str(path), "--beta", "0.2", "--freeze-multi-modal-projector", "false"]
    script, training, model = trl_settings.parse(REQUIRED + flags)
    assert (training.beta, training.loss_type, training.learning_rate) == (0.2, ["sft"], 1e-6)
    assert (script.freeze_vision_tower, script.freeze_multi_modal_projector) == (False, False)
    assert training.max_length is None
    assert training.report_to == ["tensorboard"]
    assert not training.trust_remote_code
    assert model.dtype == "float32"
    path.write_text("beta: 0.5\nlearning_rte: 1\n")
    with pytest.raises(UserError, match=r"unknown key 'learning_rte'.*'learning_rate'"):
        trl_settings.parse([*REQUIRED, "--config", str(path)])


def test_batches_are_even_so_that_no_process_waits_and_no_pair_is_lost() -> None:
    flags = ["--accelerator_config", '{"even_batches": false, "use_seedable_sampler": true}']
    config = trl_settings.parse(REQUIRED + flags)[1].accelerator_config
    assert (config.even_batches, config.use_seedable_sampler) == (True, True)


@pytest.mark.parametrize("name", ["dpo.yaml", "demo/dpo.yaml", "demo/control_sft.yaml"])
def test_shipped_configs_parse(name: str) -> None:
    flags = ["--config", str(REPO / "configs" / name), "--use_cpu", "true"]
    needed = REQUIRED[:4] if name.startswith("demo") else []
    _, training, _ = trl_settings.parse(flags + needed)
    assert training.max_length is None
    assert "sft" in training.loss_type


# --- help -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_shows_our_flags_and_imports_no_model_library(flag: str) -> None:
    command = [sys.executable, "-X", "importtime", "scripts/DPO_VL.py", flag]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "cot_reward.dpo.settings" in imported
    libraries = {"torch", "transformers", "trl", "datasets", "accelerate", "numpy", "PIL"}
    assert not libraries & {name.split(".")[0] for name in imported}
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 100
    entries = [line.split()[0].strip(",") for line in lines if line.startswith("  --")]
    ours = ["--" + member.name.replace("_", "-") for member in fields(DpoSettings)]
    assert entries == ["--config", *ours, "--help-all"]
    assert "Every flag of TRL's DPOConfig and ModelConfig works too" in done.stdout
    assert "--learning_rate" not in done.stdout


HELP = help_text(DpoSettings, "DPOConfig", "About.")


def printed(capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    """What parsing the flags prints before it exits with 0."""
    with pytest.raises(SystemExit, match=r"^0$"):
        trl_settings.parse(flags, "About.")
    return capsys.readouterr().out


def test_help_all_shows_our_flags_then_trls(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "--help-all")
    assert text.startswith(HELP)
    theirs = text.removeprefix(HELP)
    for flag in ("--learning_rate ", "--beta ", "--model_name_or_path ", "--use_peft "):
        assert f"  {flag}" in theirs
    assert "--skip_bad_rows" not in theirs
    assert "usage:" not in theirs


def test_parsing_help_prints_what_the_script_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys, "--beta", "1", "--help") == HELP


def test_every_boolean_of_the_help_is_a_flag() -> None:
    booleans = [member.name for member in fields(DpoSettings) if member.type in (bool, "bool")]
    assert len(booleans) == 8
    for name in booleans:
        dashed = name.replace("_", "-")
        needed = ["--use_peft"] if name == "merge_adapter" else []
        for flags, expected in [
            ([f"--no-{dashed}"], False),
            ([f"--no_{name}"], False),
            ([f"--{dashed}"], True),
            ([f"--{name}"], True),
            ([f"--{name}", "false"], False),
            ([f"--{name}=true"], True),
        ]:
            settings, _, _ = trl_settings.parse([*REQUIRED, *needed, *flags])
            assert getattr(settings, name) is expected, flags


def test_a_flag_for_no_wins_over_yaml(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("skip_bad_rows: true\nshared_prefix: true\n")
    flags = [*REQUIRED, "--config", str(path)]
    assert trl_settings.parse(flags)[0].skip_bad_rows
    settings, _, _ = trl_settings.parse([*flags, "--no-skip-bad-rows", "--no-shared-prefix"])
    assert (settings.skip_bad_rows, settings.shared_prefix) == (False, False)
