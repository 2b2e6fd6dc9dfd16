"""Reference log-probs on disk: what they depend on, and what a crash costs."""

import json
import os
import shutil
import subprocess
import sys
from base64 import b64encode
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cot_reward.dpo.reference import ReferenceCache
from cot_reward.errors import UserError
from helpers.dpo import save_model, save_pictures, trainer_for, varied, write
from helpers.environments import REPO
from PIL import Image
from transformers import AutoModelForImageTextToText


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_model(tmp_path / "base")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "media").mkdir()
    return save_pictures(tmp_path / "media")


def counts(base: Path, folder: Path, rows: list[Any], tmp_path: Path, *flags: str) -> Any:
    """How many texts a new trainer found and computed."""
    pairs = write(tmp_path / "pairs.jsonl", rows)
    trainer, _ = trainer_for(base, folder, pairs, tmp_path / "out", *flags)
    assert trainer.ref_model is None
    return tuple(trainer.reference_counts.values())


def test_a_rerun_finds_what_is_there_and_any_change_makes_it_anew(
    base: Path, folder: Path, tmp_path: Path
) -> None:
    rows = varied(4)
    again = (base, folder, rows, tmp_path)
    assert counts(*again) == (0, 8)
    assert counts(*again) == (8, 0)
    # Texts: only new ones, wherever they stand, and pictures by their content.
    changed = [
        rows[2],
        rows[0] | {"chosen": "other"},
        rows[1] | {"rejected": rows[1]["chosen"] + "."},
    ]
    changed.append(rows[1])
    assert counts(base, folder, changed, tmp_path) == (5, 2)
    name = rows[0]["images"][0]
    shown = [row for row in rows if name in row["images"]]
    assert 0 < len(shown) < 4
    Image.open(folder / name).rotate(180).save(folder / name)
    assert counts(*again) == (8 - 2 * len(shown), 2 * len(shown))
    # Settings, template, weights: all texts; not what the loss makes of their log-probs.
    assert counts(*again, "--image_max_pixels", "2000") == (0, 8)
    assert counts(*again, "--ld_alpha", "0.5") == (8, 0)
    assert counts(*again, "--preference_tokens", "first_difference") == (8, 0)
    template = base / "chat_template.jinja"
    template.write_text(template.read_text() + "\n")
    assert counts(*again) == (0, 8)
    model = AutoModelForImageTextToText.from_pretrained(base)
    with torch.no_grad():
        next(model.parameters())[0, 0] += 1
    model.save_pretrained(base)
    assert counts(*again) == (0, 8)
    assert counts(*again) == (8, 0)


def test_the_log_probs_are_those_of_a_live_reference(
    base: Path, folder: Path, tmp_path: Path
) -> None:
    pairs = write(tmp_path / "pairs.jsonl", varied(5, images=(2, 1)))
    trainer, _ = trainer_for(base, folder, pairs, tmp_path / "out")
    batch = trainer.data_collator(list(trainer.train_dataset))
    live = trainer.reference_logps(trainer.model, batch)
    assert live.shape == batch["completion_mask"][:, 1:].shape
    torch.testing.assert_close(batch["ref_logps"], live, rtol=1e-6, atol=1e-5)
    assert torch.equal(live != 0, batch["completion_mask"][:, 1:].bool())


# argv: the Hub's cache, pictures, pairs, output folder, commit. Prints the rows found and computed,
# and the revision that is loaded, before and after the branch moves to the commit.
MOVING_BRANCH = """
import sys
from pathlib import Path
from helpers.dpo import trainer_for

cache, folder, pairs, out, commit = sys.argv[1:]
for _ in range(2):
    trainer, (_, _, model) = trainer_for("org/judge", Path(folder), pairs, Path(out))
    print(*trainer.reference_counts.values(), model.model_revision)
    Path(cache, "models--org--judge/refs/main").write_text(commit)
"""


@pytest.mark.slow
def test_a_new_commit_of_a_model_on_the_hub_is_another_model(
    base: Path, folder: Path, tmp_path: Path
) -> None:
    commits = ["1" * 40, "2" * 40]
    cached = tmp_path / "hub/models--org--judge"
    for commit in commits:
        shutil.copytree(base, cached / "snapshots" / commit)
        base = save_model(base, "qwen2_vl")
    (cached / "refs").mkdir()
    (cached / "refs/main").write_text(commits[0])
    pairs = write(tmp_path / "pairs.jsonl", varied(4))
    arguments = [tmp_path / "hub", folder, pairs, tmp_path / "out", commits[1]]
    done = subprocess.run(
        [sys.executable, "-c", MOVING_BRANCH, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "HF_HUB_CACHE": str(tmp_path / "hub"),
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": f"{REPO}/scripts:{REPO}/tests",
        },
    )
    assert done.returncode == 0, done.stderr
    # The announcement of the pairs, and lines of accelerate, stand between them.
    lines = [line for line in done.stdout.splitlines() if line.endswith(tuple(commits))]
    assert lines == [f"0 8 {commits[0]}", f"0 8 {commits[1]}"]


def test_with_the_cache_one_model_is_loaded_and_without_it_two(
    base: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trl.trainer import dpo_trainer

    loaded: list[str] = []
    load = dpo_trainer.create_model_from_path

    def counting(path: str, **settings: Any) -> Any:
        loaded.append(path)
        return load(path, **settings)

    monkeypatch.setattr(dpo_trainer, "create_model_from_path", counting)
    pairs = write(tmp_path / "pairs.jsonl", varied(2))
    trainer_for(base, folder, pairs, tmp_path / "out")
    trainer_for(base, folder, pairs, tmp_path / "out")
    trainer_for(base, folder, pairs, tmp_path / "out", "--use_peft")
    assert len(loaded) == 3
    trainer_for(base, folder, pairs, tmp_path / "out", "--reference_cache", "false")
    assert len(loaded) == 5


def test_a_crash_costs_the_batch_in_work(
    base: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = varied(8)
    add, calls = ReferenceCache.add, []

    def dying(self: ReferenceCache, *arguments: Any) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        add(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(ReferenceCache, "add", dying)
        with pytest.raises(KeyboardInterrupt):
            counts(base, folder, rows, tmp_path)
    (kept,) = (tmp_path / "reference_cache").glob("*/*.jsonl")
    # Half a line, a file that nothing was written to, and what nothing here writes.
    known = json.loads(kept.read_text().splitlines()[0])
    kept.write_bytes(kept.read_bytes() + b'{"text": "cut')
    not_a_number = b64encode(np.array([-1, np.nan], "<f4").tobytes()).decode()
    for name, text in {
        "empty": "",
        "blank": "\n",
        "list": '[{"row": 1',
        "odd": '{"text": ["x"], "logps": 1.0}\n',
        "zz": json.dumps(known | {"logps": not_a_number}) + "\n",
        "zzz": json.dumps(known | {"logps": known["logps"][:-3]}) + "\n",
        "zzzz": json.dumps(known | {"logps": ""}) + "\n",
    }.items():
        (kept.parent / f"{name}.jsonl").write_text(text)
    assert counts(base, folder, rows, tmp_path) == (8, 8)
    about = json.loads((kept.parent / "about.json").read_text())
    assert about["image_max_pixels"] == 262144


def test_log_probs_that_are_not_finite_are_an_error_and_are_not_kept(
    base: Path, folder: Path, tmp_path: Path
) -> None:
    model = AutoModelForImageTextToText.from_pretrained(base)
    with torch.no_grad():
        model.model.language_model.norm.weight.fill_(float("nan"))
    model.save_pretrained(base)
    with pytest.raises(UserError, match="not finite"):
        counts(base, folder, varied(2), tmp_path)
    assert not list((tmp_path / "reference_cache").glob("*/*.jsonl"))


def test_a_full_disk_is_told_as_such(
    base: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cot_reward.dpo import reference

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(reference.Journal, "append", full)
    with pytest.raises(UserError, match=r"No space left.*--reference_cache_dir"):
        counts(base, folder, varied(2), tmp_path)


def test_held_out_rows_have_theirs_too(base: Path, folder: Path, tmp_path: Path) -> None:
    pairs = write(tmp_path / "pairs.jsonl", varied(4))
    held_out = write(tmp_path / "eval.jsonl", varied(6))
    flags = ("--eval_data_path", held_out)
    trainer, _ = trainer_for(base, folder, pairs, tmp_path / "out", *flags)
    # Four of the six rows are those of the training.
    assert trainer.reference_counts == {"found": 0, "computed": 12}
    metrics = trainer.evaluate()
    assert metrics["eval_rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert metrics["eval_loss"] > 0
