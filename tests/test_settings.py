"""Settings: YAML, then flags; mistakes are named with the nearest right name."""

import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from cot_reward import settings
from cot_reward.errors import UserError

REPO = Path(__file__).parents[1]


@dataclass(frozen=True)
class Example:
    data: list[Path] = field(metadata={"help": "100% needed"})
    rate: float = 0.5
    num_samples: int = 4
    model: str | None = None
    limit: int | None = None
    mode: Literal["fast", "slow", "off"] = "fast"
    balance: bool = True
    names: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.num_samples < 1:
            raise ValueError("--num-samples must be at least 1")


@pytest.fixture
def parse(tmp_path):
    def parse(yaml: str | None = "data: a.json", *flags: str) -> Example:
        path = tmp_path / "config.yaml"
        if yaml is not None:
            path.write_text(yaml, encoding="utf-8")
        return settings.parse(Example, "x", config=path, argv=list(flags))

    return parse


def test_defaults_then_yaml_then_flags(parse):
    assert parse().rate == 0.5
    assert parse("data: a.json\nrate: 0.7").rate == 0.7
    assert parse("data: a.json\nrate: 0.7", "--rate", "0.9").rate == 0.9


def test_another_config_by_flag(parse, tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text("data: b.json\nnum_samples: 7")
    assert parse("data: a.json", "--config", str(other)) == Example([Path("b.json")], num_samples=7)


def test_dashes_and_underscores(parse):
    assert parse("data: a", "--num-samples", "2").num_samples == 2
    assert parse("data: a", "--num_samples=2").num_samples == 2


def test_lists(parse):
    assert parse("data: a").data == [Path("a")]
    assert parse("data: [a, b]").data == [Path("a"), Path("b")]
    assert parse("data: a", "--data", "b", "c").data == [Path("b"), Path("c")]
    assert parse("data: a", "--data", "b", "--data", "c").data == [Path("b"), Path("c")]
    assert parse("data: a\nnames: [x, 7]").names == ["x", "7"]
    assert parse("data: []").data == []


def test_booleans(parse):
    assert parse("data: a").balance is True
    assert parse("data: a\nbalance: false").balance is False
    assert parse("data: a\nbalance: false", "--balance").balance is True
    assert parse("data: a", "--no-balance").balance is False


def test_a_bare_off_in_yaml_is_a_word(parse):
    """YAML 1.1 reads it as a boolean."""
    assert parse("data: a\nmode: off").mode == "off"
    with pytest.raises(UserError, match="True is not one of fast, slow, off"):
        parse("data: a\nmode: on")


def test_numbers(parse):
    # YAML 1.1 reads a number without a dot but with an exponent as a string.
    assert parse("data: a\nrate: 1e-6").rate == 1e-6
    assert parse("data: a\nrate: 1").rate == 1.0
    assert isinstance(parse("data: a\nrate: 1").rate, float)
    assert parse("data: a", "--rate", "1e-6").rate == 1e-6
    assert parse("data: a", "--num-samples", "3").num_samples == 3


def test_none(parse):
    assert parse("data: a\nmodel: null\nlimit:").limit is None
    assert parse("data: a\nlimit: 3").limit == 3
    assert parse("data: a", "--limit", "3").limit == 3
    assert parse("data: a\nmodel: 7").model == "7"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("rate: fast", "rate: 'fast' is not a finite number"),
        ("rate: true", "rate: True is not a finite number"),
        ("rate: .nan", "rate: nan is not a finite number"),
        ("rate: .inf", "rate: inf is not a finite number"),
        ("num_samples: 1.5", "num_samples: 1.5 is not of type int"),
        ("num_samples: '4'", "num_samples: '4' is not of type int"),
        ("num_samples: true", "num_samples: True is not of type int"),
        ("num_samples: [1]", "is not of type int"),
        ("num_samples:", "num_samples: a value is missing"),
        ("balance: 1", "balance: 1 is not of type bool"),
        ("balance: 'no'", "balance: 'no' is not of type bool"),
        ("mode: medium", "mode: 'medium' is not one of fast, slow"),
        ("model: [a]", "is not of type str"),
        ("names: [{a: 1}]", "is not of type str"),
        ("num_samples: 0", "--num-samples must be at least 1"),
        ("num_sample: 1", "unknown key 'num_sample'. Did you mean 'num_samples'?"),
        ("limits: 3", "unknown key 'limits'. Did you mean 'limit'?"),
        ("zzzzzz: 1", "unknown key 'zzzzzz'."),
        ("7: 1", "unknown key '7'."),
    ],
)
def test_a_wrong_line_in_yaml_is_named(parse, tmp_path, line, message):
    with pytest.raises(UserError) as error:
        parse(f"data: a.json\n{line}")
    assert message in str(error.value)
    if not message.startswith("--"):
        assert str(tmp_path / "config.yaml") in str(error.value)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num-sampels", "3"], "unknown flag '--num-sampels'. Did you mean '--num-samples'?"),
        (["--num-sampels=3"], "unknown flag '--num-sampels'. Did you mean '--num-samples'?"),
        (["--num", "3"], "unknown flag '--num'."),
        (["--num-samples", "three"], "--num-samples: 'three' is not of type int"),
        (["--num-samples", "1.5"], "--num-samples: '1.5' is not of type int"),
        (["--num-samples"], "expected one argument"),
        (["--rate", "nan"], "--rate: nan is not a finite number"),
        (["--mode", "medium"], "--mode: 'medium' is not one of fast, slow"),
        (["--balance=maybe"], "--balance"),
        (["stray"], "'stray'"),
    ],
)
def test_a_wrong_flag_is_named(parse, flags, message):
    with pytest.raises(UserError) as error:
        parse("data: a.json", *flags)
    assert message in str(error.value)


def test_what_is_needed_is_named(parse):
    with pytest.raises(UserError, match=r"--data is needed \(or 'data' in YAML\)"):
        parse("rate: 1")


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        (None, "no such file"),
        ("- a\n- b", "must hold 'key: value' lines"),
        ("just text", "must hold 'key: value' lines"),
        ("a: [", "cannot be read as YAML"),
        ("a: !!python/object/apply:os.system [id]", "cannot be read as YAML"),
    ],
)
def test_a_file_that_is_no_settings(parse, yaml, message):
    with pytest.raises(UserError, match=message):
        parse(yaml)


def test_an_empty_file_sets_nothing(parse):
    assert parse("# nothing\n", "--data", "a").rate == 0.5


def test_help_shows_every_flag_and_default(capsys):
    with pytest.raises(SystemExit) as end:
        settings.parse(Example, "what it does", argv=["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert "what it does" in text
    assert "100% needed" in text
    for flag in ("--config", "--data", "--num-samples", "--no-balance", "fast|slow", "default: 4"):
        assert flag in text


# --- aliases, positional lists, several dataclasses -----------------------------------------------


@dataclass(frozen=True)
class Renamed:
    """Two fields that had other names, one of them a boolean."""

    num_samples: int = field(default=4, metadata={"help": "how many", "aliases": ("samples",)})
    keep_ties: bool = field(
        default=False, metadata={"help": "ties, too", "aliases": ("ties", "with_ties")}
    )


@dataclass(frozen=True)
class Files:
    data: list[Path] = field(metadata={"help": "JSON file", "positional": True})
    out: str = "x.txt"


@dataclass(frozen=True)
class Extra:
    seed: int = 0

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError("--seed must not be negative")


def renamed(tmp_path: Path, yaml: str, *flags: str) -> Renamed:
    path = tmp_path / "config.yaml"
    path.write_text(yaml)
    return settings.parse(Renamed, "x", config=path, argv=list(flags))


@pytest.mark.parametrize("name", ["num_samples", "samples"])
def test_an_alias_is_the_field_in_yaml_and_as_a_flag(tmp_path, name):
    assert renamed(tmp_path, f"{name}: 7") == Renamed(num_samples=7)
    assert renamed(tmp_path, "", f"--{name}", "7") == Renamed(num_samples=7)
    assert renamed(tmp_path, "", f"--{name.replace('_', '-')}=7") == Renamed(num_samples=7)


@pytest.mark.parametrize("name", ["keep_ties", "keep-ties", "ties", "with_ties", "with-ties"])
def test_an_alias_of_a_boolean_has_a_negation(tmp_path, name):
    assert renamed(tmp_path, "", f"--{name}").keep_ties
    assert not renamed(tmp_path, "keep_ties: true", f"--no-{name}").keep_ties


@pytest.mark.parametrize(
    ("yaml_name", "flag"), [("samples", "--num-samples"), ("num_samples", "--samples")]
)
def test_a_flag_wins_over_yaml_under_either_name(tmp_path, yaml_name, flag):
    assert renamed(tmp_path, f"{yaml_name}: 7", flag, "9").num_samples == 9


@pytest.mark.parametrize("keys", [("num_samples", "samples"), ("samples", "num_samples")])
def test_a_field_that_yaml_sets_under_two_names_is_an_error(tmp_path, keys):
    first, second = keys
    message = rf"config\.yaml: '{first}' and '{second}' are the same; keep one"
    with pytest.raises(UserError, match=message):
        renamed(tmp_path, f"{first}: 7\n{second}: 7")


def test_an_error_names_the_key_that_the_yaml_file_has(tmp_path):
    with pytest.raises(UserError, match=r"config\.yaml: samples: 'many' is not of type int"):
        renamed(tmp_path, "samples: many")
    with pytest.raises(UserError, match=r"unknown key 'sample'. Did you mean 'samples'"):
        renamed(tmp_path, "sample: 7")


def test_a_positional_list_stands_without_a_flag():
    def parse(*argv: str) -> Files:
        return settings.parse(Files, "x", argv=argv)

    assert parse("a.json", "b.json") == Files([Path("a.json"), Path("b.json")])
    assert parse("a.json", "--out", "y") == Files([Path("a.json")], "y")
    assert parse("--out", "y", "a.json") == Files([Path("a.json")], "y")
    with pytest.raises(UserError, match="DATA"):
        parse()
    with pytest.raises(UserError, match="unknown flag '--data'"):
        parse("a.json", "--data", "b.json")


@dataclass(frozen=True)
class OneFile:
    file: Path = field(metadata={"help": "JSON file", "positional": True})
    out: str = "x.txt"


def test_a_positional_value_stands_without_a_flag(capsys):
    def parse(*argv: str) -> OneFile:
        return settings.parse(OneFile, "x", argv=argv)

    assert parse("a.json") == OneFile(Path("a.json"))
    assert parse("--out", "y", "a.json") == OneFile(Path("a.json"), "y")
    with pytest.raises(UserError, match=r"FILE is needed \(or 'file' in YAML\)"):
        parse()
    with pytest.raises(UserError, match=r"unknown flag 'b\.json'"):
        parse("a.json", "b.json")
    with pytest.raises(UserError, match="unknown flag '--file'"):
        parse("a.json", "--file", "b.json")
    with pytest.raises(SystemExit):
        parse("--help")
    assert "FILE [FLAG ...]" in capsys.readouterr().out


def test_several_dataclasses_share_a_file_and_a_command_line(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("samples: 7\nseed: 1")

    def parse(*argv: str) -> tuple[Renamed, Extra]:
        return settings.parse_several((Renamed, Extra), "x", config=path, argv=argv)

    assert parse() == (Renamed(num_samples=7), Extra(seed=1))
    assert parse("--seed", "2", "--ties") == (Renamed(7, keep_ties=True), Extra(seed=2))
    with pytest.raises(UserError, match=r"unknown flag '--sed'. Did you mean '--seed'"):
        parse("--sed", "2")
    with pytest.raises(UserError, match="--seed must not be negative"):
        parse("--seed=-1")
    path.write_text("samples: 7\nseeds: 1")
    with pytest.raises(UserError, match=r"unknown key 'seeds'. Did you mean 'seed'"):
        parse()


def test_help_shows_each_flag_once_in_one_spelling(capsys):
    with pytest.raises(SystemExit):
        settings.parse_several((Renamed, Extra, Files), "x", argv=["--help"])
    text = capsys.readouterr().out
    flags = re.findall(r"(?<!\w)--[\w-]+", text)
    assert flags == [
        "--help", "--config", "--num-samples", "--keep-ties", "--no-keep-ties", "--seed", "--out",
    ]  # fmt: skip
    assert "usage: " in text
    assert "DATA ... [FLAG ...]" in text


@pytest.mark.parametrize(
    ("script", "flags", "told"),
    [
        ("merge_json.py", [], "runs/stage2_infer/correct.jsonl: no such file"),
        ("image_stream_gpt.py", ["--dry-run"], "dataset/EvalMuse"),
        ("make_demo.py", ["--noise", "-1"], "noise is -1"),
        ("run_chain.py", ["--dry-run", "--samples", "0"], "samples is 0"),
    ],
)
def test_scripts_find_their_configuration_from_any_folder(tmp_path, script, flags, told):
    command = [sys.executable, REPO / "scripts" / script, *flags]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 2
    # What is wrong is found after the configuration was read.
    assert told in run.stderr
    assert "configs/" not in run.stderr


def test_a_configuration_in_the_working_directory_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = Path("configs/merge.yaml")
    assert settings.shipped(name) == REPO / name
    assert settings.shipped(Path("configs/none.yaml")) == Path("configs/none.yaml")
    name.parent.mkdir()
    name.write_text("data: mine.json")
    assert settings.parse(Example, "x", config=name, argv=[]).data == [Path("mine.json")]


def test_a_configuration_that_is_named_is_no_other_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^configs/merge\.yaml: no such file"):
        settings.parse(Example, "x", config=None, argv=["--config", "configs/merge.yaml"])
