"""What LLaMA-Factory reads before a training of the chain."""

import json
from pathlib import Path

from cot_reward.chain.settings import Profile
from cot_reward.chain.steps import Chain
from cot_reward.chain.trainings import write_dataset_info


def test_every_training_of_a_run_finds_its_rows_by_name(tmp_path: Path) -> None:
    run, rows = tmp_path / "runs/seed0", tmp_path / "cold_start.json"
    profile = Profile(
        "base", rows, [rows], [rows], tmp_path / "runs", control_rejection=Path("control.yaml")
    )
    chain = Chain(profile, 1)
    write_dataset_info(run, *chain.trainings(run))
    info = json.loads((run / "dataset_info.json").read_text())
    assert {name: (run / known["file_name"]).resolve() for name, known in info.items()} == {
        "cold_start": rows,
        "rejection": run / "stage1_infer/correct.jsonl",
        "control_rejection": run / "stage2_infer/correct.jsonl",
    }
    with_videos = {name for name, known in info.items() if "videos" in known["columns"]}
    assert with_videos == {"rejection", "control_rejection"}
