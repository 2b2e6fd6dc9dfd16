"""Stage 3: rows, collator, arguments, and a real training through `accelerate launch`."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from cot_reward import plotting
from cot_reward.dpo import collator as collator_module
from cot_reward.dpo import run
from cot_reward.dpo import settings as dpo_settings
from cot_reward.dpo.collator import PairCollator, SharedPrefixCollator
from cot_reward.dpo.load import load_train_and_eval
from cot_reward.dpo.rows import conversational, load_pairs
from cot_reward.errors import UserError
from cot_reward.media.images import load_image
from helpers.dpo import CAPTION, FORM, LLAMA_FACTORY, row, trainer_for, varied, write
from helpers.environments import REPO
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

BIN = Path(sys.executable).parent


@pytest.fixture
def pairs(folder: Path, tmp_path: Path) -> str:
    rows = varied(8, form=FORM)
    return write(tmp_path / "pairs.jsonl", rows)


def collator(base: Path, folder: Path, pixels: int = 262144) -> PairCollator:
    processor = AutoProcessor.from_pretrained(base)
    return PairCollator(processor, image_folder=folder, image_max_pixels=pixels)


# --- rows -----------------------------------------------------------------------------------------
def test_prompt_stands_once_and_images_where_their_placeholders_were() -> None:
    got = conversational(row(["a.png", "b.png"], problem="One: <image>\ntwo: <image>. Judge."))
    assert got["prompt"] == [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "One: "},
                {"type": "image"},
                {"type": "text", "text": "\ntwo: "},
                {"type": "image"},
                {"type": "text", "text": ". Judge."},
            ],
        }
    ]
    assert got["chosen"] == [{"role": "assistant", "content": row([])["chosen"]}]
    assert got["image_paths"] == ["a.png", "b.png"]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"problem": "<image>" + CAPTION}, "1 <image> in the prompt, but 2 in 'images'"),
        ({"images": ["0.png", "gone.png"]}, "gone.png: no such file"),
        ({"images": ["0.png", "../0.png"]}, "out of the media root"),
        ({"rejected": row([])["chosen"]}, "are the same text"),
        ({"chosen": " \n"}, "'chosen' is empty"),
        ({"problem": "<image><image> "}, "the prompt is empty"),
        ({"chosen": None}, "'chosen' must be of type str, not None"),
        ({"images": "0.png"}, "'images' must be of type list"),
        ({"images": [0, 1]}, "a media path must be a string, not 0"),
        ({"videos": ["v.mp4"]}, "has videos"),
        ({"chosen": "<|image_pad|>"}, "holds <|image_pad|>"),
        ({"rejected": "an <image> of it"}, "'rejected' holds <image>; a trainer would look"),
        ({"chosen": ["x" * 10**6]}, "'chosen' must be of type str"),
        ({"images": ["0.png", "\x1b[2J.png"]}, "\\x1b[2J.png: no such file"),
        ({"problem": CAPTION, "images": []}, "has no images"),
    ],
)
def test_a_bad_row_is_named_by_its_line(
    folder: Path, tmp_path: Path, changes: dict[str, Any], problem: str
) -> None:
    good = row(["0.png", "1.png"])
    path = write(tmp_path / "rows.jsonl", [good, good | changes, good])
    with pytest.raises(UserError) as caught:
        load_pairs(path, str(folder))
    head, line, way_out = str(caught.value).split("\n")
    assert "--skip_bad_rows" in way_out
    kept = load_pairs(path, str(folder), skip_bad_rows=True)
    assert len(kept.rows) == 2
    assert problem in kept.problems[0]
    assert head == f"{path}: 1 of 3 rows cannot be used:"
    assert line.startswith("  line 2: ")
    assert problem in line
    assert len(line) < 300


def test_the_first_ten_of_many_bad_rows_are_shown(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write(path, [row(["gone.png", "1.png"])] * 30)
    path.write_text("not json\n[1]\n\n" + path.read_text())
    with pytest.raises(UserError, match="32 of 32 rows") as caught:
        load_pairs(str(path), str(folder))
    lines = str(caught.value).splitlines()
    assert len(lines) == 13
    assert lines[1].startswith("  line 1: not valid JSON")
    assert lines[2] == "  line 2: not an object"
    assert lines[3].startswith("  line 4: gone.png")
    assert lines[-2] == "  and 22 more"


def test_a_json_list_is_read_too(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(json.dumps([row(["0.png", "1.png"])] * 3, indent=1))
    assert len(load_pairs(str(tmp_path / "rows.json"), str(folder)).rows) == 3


def test_a_row_that_max_length_would_cut_is_a_bad_one(
    base: Path, folder: Path, tmp_path: Path
) -> None:
    """By the tokens that the collator makes, above and below the bound on pixels."""
    rows = [row(["1.png", "2.png"]), row(["3.png"], chosen="1" + " red" * 50), row(["0.png"])]
    path = write(tmp_path / "rows.jsonl", rows)
    flags = f"--data_path {path} --image_folder {folder} --model_name_or_path {base} --use_cpu "
    flags += "--bf16 false --image_max_pixels 6000 --max_length"
    made = collator(base, folder, 6000)(load_pairs(path, str(folder)).rows)
    lengths = made["attention_mask"].sum(dim=1).view(2, -1).amax(dim=0).tolist()
    longest = max(lengths)
    parsed = dpo_settings.parse([*flags.split(), str(longest)])
    assert not load_train_and_eval(*parsed)[0].problems
    parsed = dpo_settings.parse([*flags.split(), str(longest - 1), "--skip_bad_rows"])
    (problem,) = load_train_and_eval(*parsed)[0].problems
    line = lengths.index(longest) + 1
    assert problem == (
        f"{path}:{line}: has {longest} tokens and would be cut by --max_length {longest - 1}"
    )
    with pytest.raises(UserError, match=f"line {line}: has {longest} tokens"):
        load_train_and_eval(*dpo_settings.parse([*flags.split(), str(longest - 1)]))


@pytest.mark.parametrize("kind", ["cut", "text", "empty", "thin"])
def test_a_picture_that_cannot_be_shown_is_found_before_a_model_loads(
    folder: Path, tmp_path: Path, kind: str
) -> None:
    made = {
        "cut": (folder / "2.png").read_bytes()[:900],
        "text": b"not a picture",
        "empty": b"",
        "thin": b"",
    }
    (tmp_path / "bad.png").write_bytes(made[kind])
    if kind == "thin":
        Image.new("RGB", (600000, 1)).save(tmp_path / "bad.png")
    (tmp_path / "good.png").write_bytes((folder / "0.png").read_bytes())
    path = write(tmp_path / "rows.jsonl", [row(["good.png"]), row(["good.png", "bad.png"])])
    with pytest.raises(UserError, match=r"1 of 2 rows.*\n  line 2: .*bad\.png: "):
        load_pairs(path, str(tmp_path))
    assert len(load_pairs(path, str(tmp_path), skip_bad_rows=True).rows) == 1


# --- collator -------------------------------------------------------------------------------------
def test_images_are_opened_by_the_collator_and_each_once(
    base: Path, folder: Path, pairs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    load = load_image

    def counting(path: Path) -> Image.Image:
        opened.append(path.name)
        return load(path)

    monkeypatch.setattr(collator_module, "load_image", counting)
    rows = load_pairs(pairs, str(folder)).dataset()
    assert not opened
    batch = collator(base, folder)([rows[0], rows[1]])
    assert sorted(opened) == sorted({*rows[0]["image_paths"], *rows[1]["image_paths"]})
    assert batch["input_ids"].shape[0] == 4
    for name in rows[0]["image_paths"]:
        (tmp_path / name).write_bytes((folder / name).read_bytes()[:200])
    with pytest.raises(UserError, match="broken or cut"):
        collator(base, tmp_path)([rows[0]])


def test_both_layouts_have_the_same_tokens(base: Path, folder: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", varied(5, images=(2, 1, 3), form=FORM))
    rows = load_pairs(path, str(folder)).rows
    stock = collator(base, folder, 6000)(rows)
    shared = SharedPrefixCollator(
        AutoProcessor.from_pretrained(base), image_folder=folder, image_max_pixels=6000
    )(rows)
    assert shared["attention_mask"].sum() == stock["attention_mask"].sum()
    for number in range(10):
        real = stock["attention_mask"][number].bool()
        pair = number % 5
        said = shared["completion_mask"][number].bool()
        ids = [
            *shared["prompt_ids"][pair][shared["prompt_mask"][pair].bool()].tolist(),
            shared["input_ids"][number][0].item(),
            *shared["input_ids"][number][said].tolist(),
        ]
        assert ids == stock["input_ids"][number][real].tolist()
        assert said.sum() == stock["completion_mask"][number].sum()
    half = len(stock["image_grid_thw"]) // 2
    assert torch.equal(shared["image_grid_thw"], stock["image_grid_thw"][:half])
    assert torch.equal(shared["pixel_values"], stock["pixel_values"].chunk(2)[0])


def test_token_ids_are_those_of_llama_factory(base: Path, folder: Path, tmp_path: Path) -> None:
    """Stages 1 and 2 train on LLaMA-Factory's ids; images above and below the bound."""
    pixels = 6000  # 0.png and 1.png lie below
    rows = [row(["0.png", "1.png"]), row(["2.png", "3.png"]), row(["1.png", "2.png", "3.png"])]
    rows.append(row(["3.png", "0.png"], problem="A <image>\nand  <image> b\n"))
    write(tmp_path / "rows.jsonl", rows)
    ids = tmp_path / "ids.json"
    subprocess.run(
        [REPO / ".envs/sft/bin/python", "-c", LLAMA_FACTORY, base, folder, tmp_path, str(pixels)],
        check=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "passive"},
    )
    theirs = json.loads(ids.read_text())
    dataset = load_pairs(str(tmp_path / "rows.jsonl"), str(folder)).dataset()
    batch = collator(base, folder, pixels)(list(dataset))
    grids = [tuple(grid) for grid in batch["image_grid_thw"].tolist()]
    assert len(theirs) == 2 * len(rows)
    for number, their in enumerate(theirs):
        real = batch["attention_mask"][number].bool()
        ours = batch["input_ids"][number][real].tolist()
        learned = batch["completion_mask"][number][real].bool()
        assert ours == their["input_ids"]
        expected = [label for label in their["labels"] if label != -100]
        assert torch.tensor(ours)[learned].tolist() == expected
        take = len(their["grid"])
        assert grids[:take] == [tuple(grid) for grid in their["grid"]]
        grids = grids[take:]


# --- arguments ------------------------------------------------------------------------------------
REQUIRED = ["--data_path", "x.jsonl", "--model_name_or_path", "x", "--use_cpu", "--bf16", "false"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--learning_rat", "1"], "unknown flag '--learning_rat'. Did you mean '--learning_rate'?"),
        (["--data-pat=1"], "unknown flag '--data-pat'. Did you mean '--data-path'?"),
        (["stray"], "unexpected argument 'stray'"),
        (["--learning_rate", "fast"], "invalid float value: 'fast'"),
        (["--loss_type", "sigmoid", "sft", "--loss_weights", "1"], "same length as `loss_type`"),
        (["--image_max_pixels", "0"], "image_max_pixels is 0"),
        (["--config"], "expected one argument"),
        (["--merge_adapter"], "--merge_adapter needs --use_peft"),
        (["--eval_strategy", "steps", "--eval_steps", "5"], "needs --eval_data_path"),
        (["--sync_ref_model"], "--reference_cache false"),
        (["--model_init_kwargs", '{"token": "hf_x"}'], "as HF_TOKEN"),
        (["--precompute_ref_log_probs"], "--reference_cache does it"),
        (["--resume_from_checkpoint", "true", "--output_dir", "gone"], "no checkpoint in gone"),
        (["--resume_from_checkpoint", "gone"], "gone: is no whole checkpoint"),
        (["--config", "gone.yaml"], "gone.yaml: no such file"),
    ],
)
def test_bad_flags_are_one_message(flags: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        dpo_settings.parse(REQUIRED + flags)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_yaml_then_flags(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("beta: 0.5\nloss_type: sft\nlearning_rate: 1e-6\nfreeze_vision_tower: false\n")
    flags = ["--config", str(path), "--beta", "0.2", "--freeze-multi-modal-projector", "false"]
    script, training, model = dpo_settings.parse(REQUIRED + flags)
    assert (training.beta, training.loss_type, training.learning_rate) == (0.2, ["sft"], 1e-6)
    assert (script.freeze_vision_tower, script.freeze_multi_modal_projector) == (False, False)
    assert training.max_length is None
    assert training.report_to == ["tensorboard"]
    assert not training.trust_remote_code
    assert model.dtype == "float32"
    path.write_text("beta: 0.5\nlearning_rte: 1\n")
    with pytest.raises(UserError, match=r"unknown key 'learning_rte'.*'learning_rate'"):
        dpo_settings.parse([*REQUIRED, "--config", str(path)])


@pytest.mark.parametrize("name", ["dpo.yaml", "demo/dpo.yaml", "demo/control_sft.yaml"])
def test_shipped_configs_parse(name: str) -> None:
    flags = ["--config", str(REPO / "configs" / name), "--use_cpu", "true"]
    needed = REQUIRED[:4] if name.startswith("demo") else []
    _, training, _ = dpo_settings.parse(flags + needed)
    assert training.max_length is None
    assert "sft" in training.loss_type


# --- training -------------------------------------------------------------------------------------
def test_the_sft_term_is_the_mean_over_the_chosen_tokens(
    base: Path, folder: Path, pairs: str, tmp_path: Path
) -> None:
    control = str(REPO / "configs/demo/control_sft.yaml")
    trainer, _ = trainer_for(base, folder, pairs, tmp_path / "o", "--config", control)
    rows = load_pairs(pairs, str(folder)).dataset()
    batch = trainer.data_collator([rows[0], rows[3], rows[5]])
    loss = trainer.compute_loss(trainer.model, dict(batch))
    inputs = {key: value for key, value in batch.items() if key != "completion_mask"}
    logits = trainer.model(**inputs).logits[:3, :-1]
    learned = batch["completion_mask"][:3, 1:].bool()
    expected = torch.nn.functional.cross_entropy(
        logits[learned], batch["input_ids"][:3, 1:][learned]
    )
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_frozen_parts_and_adapters(base: Path, folder: Path, pairs: str, tmp_path: Path) -> None:
    frozen = ["--freeze_vision_tower", "--freeze_multi_modal_projector"]
    trainer, _ = trainer_for(base, folder, pairs, tmp_path / "a", *frozen)
    names = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert names
    assert not [name for name in names if "visual" in name]
    trainer, _ = trainer_for(base, folder, pairs, tmp_path / "b", frozen[0])
    names = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert all("merger" in name for name in names if "visual" in name)
    assert any("merger" in name for name in names)

    trainer, parsed = trainer_for(base, folder, pairs, tmp_path / "c", "--use_peft", *frozen)
    names = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert names
    assert all("lora" in name and "visual" not in name for name in names)
    run.train(trainer, *parsed)
    assert (tmp_path / "c/adapter_model.safetensors").is_file()
    assert (tmp_path / "c/processor_config.json").is_file()


def launch(*flags: str) -> subprocess.CompletedProcess[str]:
    command = (
        f"{BIN}/accelerate launch -q --config_file configs/demo/accelerate.yaml "
        "--num_cpu_threads_per_process 1 scripts/DPO_VL.py"
    )
    return subprocess.run(
        [*command.split(), *flags],
        cwd=REPO,
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "CI": "1"},
    )


@pytest.mark.slow
def test_training_writes_a_model_that_loads(
    base: Path, folder: Path, pairs: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    flags = (
        f"--config configs/demo/dpo.yaml --model_name_or_path {base} --data_path {pairs} "
        f"--image_folder {folder} --output_dir {out} --per_device_train_batch_size 2 "
        "--save_strategy steps --save_steps 1 "
        f"--eval_data_path {pairs} --eval_strategy steps --eval_steps 2"
    ).split()
    done = launch(*flags, "--max_steps", "2")
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    summary = json.loads((out / "summary.json").read_text())
    assert summary["rows"] == {"in": 8, "out": 8, "skipped": {}}
    assert summary["steps"] == 2
    assert summary["settings"]["beta"] == 0.3
    assert summary["settings"]["image_folder"] == str(folder)
    assert {"rewards/margins", "eval_rewards/accuracies"} <= summary["metrics"].keys()
    assert list(out.glob("runs/*/events.out.tfevents.*"))
    assert {path.stem for path in out.glob("curves/*.png")} == {
        name.replace("/", "_") for name in run.CURVES
    }
    assert json.loads((out / "trainer_state.json").read_text())["global_step"] == 2

    before = AutoModelForImageTextToText.from_pretrained(base).state_dict()
    after = AutoModelForImageTextToText.from_pretrained(out).state_dict()
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert (out / "generation_config.json").is_file()
    read = {path: AutoProcessor.from_pretrained(path) for path in (base, out)}
    assert read[out].chat_template == read[base].chat_template
    assert read[out].tokenizer.get_vocab() == read[base].tokenizer.get_vocab()
    assert json.loads((out / "config.json").read_text()).get("use_cache", True)

    done = launch(*flags, "--max_steps", "3", "--resume_from_checkpoint", "true")
    assert done.returncode == 0, done.stderr
    history = json.loads((out / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in history if "loss" in entry] == [1, 2, 3]


def test_a_missing_picture_is_found_before_a_model_loads(folder: Path, tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", [row(["0.png", "1.png"]), row(["0.png", "gone.png"])])
    flags = (
        f"--config configs/demo/dpo.yaml --data_path {rows} --image_folder {folder} "
        f"--model_name_or_path {tmp_path}/no_model --output_dir {tmp_path}/out"
    )
    done = subprocess.run(
        [sys.executable, "scripts/DPO_VL.py", *flags.split()],
        cwd=REPO,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"error: {rows}: 1 of 2 rows cannot be used:",
        f"  line 2: gone.png: no such file below {folder}",
        "mend them, or leave them out with --skip_bad_rows",
    ]


# --- curves ---------------------------------------------------------------------------------------
def test_curves_read_both_trainers_logs(tmp_path: Path) -> None:
    theirs = [{"current_steps": 5, "loss": 2.0}, {"current_steps": 10, "loss": float("nan")}]
    assert plotting.series(theirs, "loss") == ([5.0], [2.0])
    ours = [{"step": 1, "loss": 2.0}, {"step": 1, "eval_loss": 1.0}, {"step": 2, "loss": 1.0}]
    assert plotting.series(ours, "loss") == ([1.0, 2.0], [2.0, 1.0])
    assert plotting.smoothed([3.0, 3.0, 3.0]) == pytest.approx([3.0, 3.0, 3.0])
    target = tmp_path / "curves/loss.png"
    assert plotting.plot_history(ours, ["loss", "eval_loss"], target, "loss")
    assert Image.open(target).width > 500
    assert not plotting.plot_history(ours, ["other"], tmp_path / "none.png", "none")
    assert not (tmp_path / "none.png").exists()
