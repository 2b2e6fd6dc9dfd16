"""Flags of infer_ray.py that exclude each other, and what needs no cluster."""

import subprocess
import sys

import pytest
from cot_reward import settings
from cot_reward.distributed.run import infer_on_ray
from cot_reward.distributed.settings import RaySettings
from cot_reward.errors import UserError
from cot_reward.inference.settings import InferenceSettings
from helpers.environments import REPO


def call(world, *flags: object) -> int:
    argv = world.command(*flags)[2:]
    on_ray, chosen = settings.parse_several((RaySettings, InferenceSettings), "", argv=argv)
    return infer_on_ray(on_ray, chosen, "none")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--shard", "1/2"], "infer_ray.py cuts all comparisons into shares itself"),
        (["--limit", 5], "infer_ray.py cuts all comparisons into shares itself"),
        (["--data", "-"], "every worker reads the data; name files"),
        (["--workers", 0], "--workers must be at least 1"),
        (["--gpus-per-server", -1], "--gpus-per-server must be at least 0"),
        (["--serve-flags", "--x 1"], "add --gpus-per-server N"),
        (["--gpus-per-server", 1], "name the folder of the model with --model"),
        (["--gpus-per-server", 1, "--model", "m", "--servers", "f"], "asks its own server"),
    ],
)
def test_mistakes_are_named(world, flags, message):
    with pytest.raises(UserError) as error:
        call(world, *flags)
    assert message in str(error.value)


def test_a_dry_run_needs_no_cluster(world, capsys):
    assert call(world, "--dry-run") == 0
    assert '"comparisons": 3' in capsys.readouterr().out
    assert not world.out.exists()


def test_the_folder_of_a_plain_run_is_refused(world):
    assert world.call() == 0
    with pytest.raises(UserError, match="holds a run of its own; choose another folder"):
        call(world)


def test_all_flags_are_listed():
    done = subprocess.run(
        [sys.executable, "scripts/infer_ray.py", "--help"],
        cwd=REPO, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for flag in ("--cluster", "--gpus-per-server", "--base-url", "--num-samples"):
        assert flag in done.stdout
