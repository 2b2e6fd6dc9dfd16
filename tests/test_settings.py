"""Settings: YAML, then flags; mistakes are named with the nearest right name."""

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from cot_reward import provenance, settings
from cot_reward.errors import UserError


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


def test_a_bare_off_is_a_word(parse):
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


def test_plain_is_what_json_holds():
    value = {"a": Path("x/y"), "b": [Path("z"), 1, None], "c": {"d": Path("e")}}
    assert provenance.jsonable(value) == {"a": "x/y", "b": ["z", 1, None], "c": {"d": "e"}}


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        ("return 3", 3, ""),
        ("raise errors.UserError('x.json:7: bad')", 2, "error: x.json:7: bad\n"),
        ("raise KeyboardInterrupt", 130, ""),
    ],
)
def test_run_turns_the_users_mistakes_into_one_message(body, code, message):
    program = f"from cot_reward import errors\ndef main():\n {body}\nerrors.run_script(main)"
    scripts = Path(settings.__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=scripts, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (code, message)
