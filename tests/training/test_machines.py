"""What must be the same on all machines of a training."""

from pathlib import Path

import pytest
from cot_reward.errors import UserError
from cot_reward.training.machines import check_alike, check_faults, media, software
from helpers.environments import REPO


def test_every_difference_is_named_with_its_machines() -> None:
    alike = {"torch": "2.13.0", "trl": "1.16.0"}
    check_alike({"node 0 (a)": alike, "node 1 (b)": dict(alike), "node 2 (c)": dict(alike)})
    with pytest.raises(UserError) as error:
        check_alike({
            "node 0 (a)": alike,
            "node 1 (b)": {"torch": "2.12.0", "trl": "1.16.0"},
            "node 2 (c)": {"torch": "2.13.0", "peft": "0.18.1"},
        })  # fmt: skip
    assert str(error.value).splitlines()[1:4] == [
        "  torch: 2.13.0 on node 0 (a), 2.12.0 on node 1 (b)",
        "  trl: 1.16.0 on node 0 (a), not there on node 2 (c)",
        "  peft: not there on node 0 (a), 0.18.1 on node 2 (c)",
    ]


def test_a_fault_of_all_is_told_once_and_of_some_with_their_names() -> None:
    check_faults({"node 0 (a)": "", "node 1 (b)": ""})
    with pytest.raises(UserError, match=r"\Aa.json: no such file\Z"):
        check_faults({"node 0 (a)": "a.json: no such file", "node 1 (b)": "a.json: no such file"})
    with pytest.raises(UserError, match=r"\Aon node 1 \(b\): a.json: no such file\Z"):
        check_faults({"node 0 (a)": "", "node 1 (b)": "a.json: no such file"})


def test_media_are_told_by_name_and_size(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.png").write_bytes(b"1234")
    names = ["a.png", "a.png"]
    assert media(names, tmp_path / "one") == media(names[:1], tmp_path / "two")
    (tmp_path / "two/a.png").write_bytes(b"123")
    assert media(names, tmp_path / "one") != media(names, tmp_path / "two")
    with pytest.raises(UserError, match=r"b\.png: no such file below"):
        media(["b.png"], tmp_path / "one")


def test_software_is_that_of_an_environment() -> None:
    here, sft = software(), software(REPO / ".envs/sft")
    assert here["the code in scripts/"] == sft["the code in scripts/"]
    assert (here["llamafactory"], sft["llamafactory"]) == ("not there", "0.9.5")
    assert sft["torch"].startswith("2.")
