"""Pairs of ours in the forms of other trainers, read by these trainers' own loaders.

ms-swift is not installed: its form is compared with its documents.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from cot_reward.rows.preference_forms import in_form
from cot_reward.rows.preferences import PairReader
from cot_reward.rows.validation import check_pair_row
from helpers.dpo import save_model, save_pictures, varied
from helpers.environments import REPO, run_in
from helpers.rows import write_lines

FORMS: list[Any] = ["trl", "llamafactory", "swift"]
KEY = "a" * 64


def pairs(count: int = 4) -> list[dict[str, Any]]:
    """Rows as the merger writes them, with one to three pictures."""
    return [row | {"id": KEY, "chosen_answer": 1} for row in varied(count, images=(2, 1, 3))]


@pytest.mark.parametrize("system", ["", "Be strict."])
@pytest.mark.parametrize("form", FORMS)
def test_what_is_written_is_read_again(form: Any, system: str) -> None:
    for pair in pairs():
        pair |= {"system": system} if system else {}
        read = PairReader()(1, in_form(pair, form))
        assert read == pair
        check_pair_row(read)


def test_images_between_words_keep_their_places() -> None:
    pair = pairs()[0] | {"problem": "One: <image>, two: <image>.\n", "images": ["a", "b"]}
    for form in FORMS:
        assert PairReader()(1, in_form(pair, form)) == pair


def test_ours_is_left_as_it_is() -> None:
    assert in_form(pairs()[0], "ours") == pairs()[0]


def test_the_form_of_ms_swift_is_the_documented_one() -> None:
    pair = pairs()[0]
    row = in_form(pair, "swift")
    assert row["messages"] == [
        {"role": "user", "content": pair["problem"]},
        {"role": "assistant", "content": pair["chosen"]},
    ]
    assert row["rejected_response"] == pair["rejected"]
    assert row["images"] == pair["images"]
    # ms-swift would take these columns for a prompt, an answer or a label.
    assert not row.keys() & {"problem", "prompt", "query", "system", "response", "label"}


def test_trl_has_no_videos() -> None:
    pair = pairs()[0] | {"images": [], "videos": ["a.mp4"], "problem": "<video>x"}
    with pytest.raises(ValueError, match="TRL trains on images only"):
        in_form(pair, "trl")
    assert in_form(pair, "swift")["videos"] == ["a.mp4"]


def test_trl_collates_its_form_to_the_batch_of_stage_3(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`datasets` reads the file, and TRL's own collator opens the pictures, below where it runs."""
    import datasets
    from cot_reward.dpo.collator import PairCollator
    from cot_reward.dpo.pairs import load_pairs
    from transformers import AutoProcessor
    from trl.trainer.dpo_trainer import DataCollatorForVisionPreference

    media = tmp_path / "media"
    media.mkdir()
    save_pictures(media)
    made = [pair | {"system": "Be strict."} for pair in pairs()]
    ours = write_lines(tmp_path / "ours.jsonl", made)
    write_lines(tmp_path / "train.jsonl", [in_form(pair, "trl") for pair in made])
    rows = datasets.load_dataset(
        "json",
        data_files=str(tmp_path / "train.jsonl"),
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    processor = AutoProcessor.from_pretrained(save_model(tmp_path / "model"))
    monkeypatch.chdir(media)
    theirs = DataCollatorForVisionPreference(processor)(list(rows))
    collator = PairCollator(processor, image_folder=media)
    expected = collator(list(load_pairs(str(ours), str(media)).dataset()))
    for name in ("input_ids", "completion_mask", "image_grid_thw", "pixel_values"):
        assert (theirs[name] == expected[name]).all()


# argv: model, dataset folder, media root. LLaMA-Factory's own reading for its DPO, to token ids.
LLAMA_FACTORY = """
import json, sys
from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
from llamafactory.hparams import get_train_args
from llamafactory.model import load_tokenizer

model, folder, media = sys.argv[1:]
found = {}
for name in json.load(open(folder + "/dataset_info.json")):
    model_args, data_args, training_args, *_ = get_train_args({
        "model_name_or_path": model, "stage": "dpo", "do_train": True, "dataset": name,
        "dataset_dir": folder, "media_dir": media, "template": "qwen2_vl", "use_cpu": True,
        "output_dir": folder + "/out", "preprocessing_num_workers": 1, "overwrite_cache": True,
    })
    module = load_tokenizer(model_args)
    template = get_template_and_fix_tokenizer(module["tokenizer"], data_args)
    rows = get_dataset(template, model_args, data_args, training_args, stage="rm", **module)
    found[name] = [
        {key: row[key] for key in ("chosen_input_ids", "rejected_input_ids", "images")}
        | {"text": module["tokenizer"].decode(row["chosen_input_ids"])}
        | {side: module["tokenizer"].decode([t for t in row[side + "_labels"] if t >= 0])
           for side in ("chosen", "rejected")}
        for row in rows["train_dataset"]
    ]
print("RESULT" + json.dumps(found) + "RESULT")
"""


@pytest.mark.slow
def test_llama_factory_reads_its_form_and_ours_by_the_register(tmp_path: Path) -> None:
    """By the shipped entries: the sample, the merger's rows as they are, and in Alpaca form."""
    known = json.loads((REPO / "dataset/dataset_info.json").read_text())
    names = ("sample_dpo", "dpo", "dpo_llamafactory")
    (tmp_path / "dataset_info.json").write_text(json.dumps({name: known[name] for name in names}))
    shutil.copytree(REPO / "dataset/sample", tmp_path / "sample")
    save_pictures(tmp_path)
    made = pairs()
    for name in names[1:]:
        (tmp_path / name).mkdir()
    write_lines(tmp_path / "dpo/train.jsonl", made)
    written = [in_form(pair, "llamafactory") for pair in made]
    write_lines(tmp_path / "dpo_llamafactory/train.jsonl", written)
    base = save_model(tmp_path / "model")

    found: Any = run_in("sft", LLAMA_FACTORY, base, tmp_path, tmp_path)

    assert found["dpo"] == found["dpo_llamafactory"]
    sample = [json.loads(line) for line in (tmp_path / "sample/dpo.jsonl").open()]
    for rows, read in ((sample, found["sample_dpo"]), (made, found["dpo"])):
        assert len(read) == len(rows)
        for pair, row in zip(rows, read, strict=True):
            assert row["images"] == [str(tmp_path / image) for image in pair["images"]]
            assert row["text"].count("<|vision_start|>") == len(pair["images"])
            assert pair["problem"].replace("<image>", "") in row["text"]
            for side in ("chosen", "rejected"):
                assert row[side].startswith(pair[side])
