"""Texts that the model writes while it is trained: what is asked, logged, and left as it was."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from cot_reward.dpo import run
from cot_reward.dpo.agreement import Agreement, choose_prompts
from cot_reward.dpo.pairs import load_pairs
from cot_reward.errors import UserError
from cot_reward.tasks import TASKS
from helpers.dpo import FORM, row, trainer_for, varied, write
from helpers.environments import REPO
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

TEXT = (
    "<think>\nTotal score:\nImage 1: {}\nImage 2: {}\n</think>\n<answer>Image {} is better</answer>"
)


def history(out: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((out / "trainer_state.json").read_text())[
        "log_history"
    ]
    return found


def train(base: Path, folder: Path, pairs: str, out: Path, *flags: str) -> Path:
    trainer, parsed = trainer_for(base, folder, pairs, out, *flags)
    run.train(trainer, *parsed)
    return out


def test_prompts_are_different_and_both_answers_are_right_in_turns(
    folder: Path, tmp_path: Path
) -> None:
    """Two rows of each prompt; of the last comparison the right answer is not known."""
    rows = [one for one in varied(8, form=FORM) for _ in range(2)]
    rows += [row(["0.png", "1.png"], chosen="3", id="unknown")]
    dataset = load_pairs(write(tmp_path / "rows.jsonl", rows), str(folder)).dataset()

    def chosen(count: int) -> list[tuple[str, int]]:
        found = choose_prompts(dataset, count)
        answers = [answer for (answer,) in found["answer"][:]]
        return list(zip(found["comparison"][:], answers, strict=True))

    assert chosen(3) == [("0", 1), ("4", 1), ("1", 2)]
    assert sorted(chosen(100)) == [(str(number), 1 + number % 2) for number in range(8)]
    with pytest.raises(UserError, match=r"--agreement_steps: of no row .* that the judge can read"):
        choose_prompts(dataset.select([len(dataset) - 1]), 3)


@pytest.mark.parametrize("flags", [(), ("--shared_prefix", "false"), ("--use_peft",)])
def test_the_texts_are_the_models_own_greedy_ones(
    base: Path, folder: Path, pairs: str, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    """Whatever the model's folder says of sampling, and whatever stands beside it in a batch."""
    processor = AutoProcessor.from_pretrained(base)
    model = AutoModelForImageTextToText.from_pretrained(base).eval()
    torch.manual_seed(0)
    with torch.no_grad():  # the untouched one repeats a token
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    trainer, _ = trainer_for(tmp_path / "base", folder, pairs, tmp_path / "out", *flags)
    trainer.model.generation_config.repetition_penalty = 1.5
    trainer.model.generation_config.do_sample = True
    rows = choose_prompts(trainer.train_dataset, 4)
    written = Agreement(trainer, 1, rows).write_texts(trainer.model.eval(), list(rows))
    longest = max(len(processor.tokenizer(one["chosen"][0]).input_ids) for one in rows)
    for one, (text, ended) in zip(rows, written, strict=True):
        (shown,) = trainer.data_collator.with_images([one])
        prompt = processor.apply_chat_template(
            shown["prompt"], add_generation_prompt=True, tokenize=False
        )
        inputs = processor(images=shown["images"], text=[prompt], return_tensors="pt")
        tokens = model.generate(**inputs, do_sample=False, max_new_tokens=2 * longest)
        alone = tokens[0, inputs["input_ids"].shape[1] :]
        assert text == processor.tokenizer.decode(alone, skip_special_tokens=True)
        assert ended == (len(alone) < 2 * longest)
    assert len(set(written)) > 1


def learnt_by_heart(base: Path, folder: Path, tmp_path: Path, *flags: str) -> tuple[str, Path]:
    """Two pairs, and a run that ends with the chosen texts; that of answer 2 contradicts itself."""
    rows = [
        row(["0.png", "1.png"], id=str(answer), problem=f"<image><image>{caption}")
        | {"chosen": TEXT.format(7, 5, answer), "rejected": TEXT.format(6, 8, 3 - answer)}
        for answer, caption in ((1, "red"), (2, "blue"))
    ]
    pairs = write(tmp_path / "pairs.jsonl", rows)
    common = "--max_steps 60 --learning_rate 0.01 --loss_type sft --loss_weights 1 --warmup_steps 0"
    return pairs, train(base, folder, pairs, tmp_path / "learnt", *common.split(), *flags)


def shares(entry: dict[str, Any]) -> list[float | None]:
    names = ("accuracy", "well_formed", "coherent", "answers_1")
    return [entry.get(f"agreement/{name}") for name in names]


def test_a_model_that_learns_its_texts_is_seen_to_agree(
    base: Path, folder: Path, tmp_path: Path
) -> None:
    flags = ("--agreement_steps", "30", "--agreement_rows", "8")
    _, out = learnt_by_heart(base, folder, tmp_path, *flags)
    entries = [entry for entry in history(out) if "agreement/accuracy" in entry]
    assert [entry["step"] for entry in entries] == [0, 30, 60]
    assert shares(entries[0]) == [0, 0, 0, None]
    assert shares(entries[-1]) == [1, 1, 0.5, 0.5]
    # Not only the step of the texts is in the log.
    assert len([entry for entry in history(out) if "loss" in entry]) == 60


@pytest.mark.slow
def test_each_process_writes_its_share(base: Path, folder: Path, tmp_path: Path) -> None:
    """Two prompts and three processes: one has nothing to write, and the others one text each."""
    pairs, learnt = learnt_by_heart(base, folder, tmp_path)
    out = tmp_path / "three"
    command = (
        "-m torch.distributed.run --standalone --nproc_per_node 3 scripts/DPO_VL.py "
        f"--config configs/demo/dpo.yaml --model_name_or_path {learnt} --data_path {pairs} "
        f"--image_folder {folder} --output_dir {out} --report_to none --max_steps 1 "
        "--per_device_train_batch_size 1 --agreement_steps 1 --learning_rate 0"
    )
    done = subprocess.run(
        [sys.executable, *command.split()],
        cwd=REPO,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    entries = [entry for entry in history(out) if "agreement/accuracy" in entry]
    assert [entry["step"] for entry in entries] == [0, 1]
    assert [shares(entry) for entry in entries] == [[1, 1, 0.5, 0.5]] * 2


@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("--reference_cache", "false"),
        ("--shared_prefix", "false"),
        ("--use_peft", "--lora_dropout", "0.2", "--gradient_checkpointing", "true"),
    ],
)
def test_the_training_is_the_same_with_and_without(
    base: Path, folder: Path, pairs: str, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    common = (*flags, "--max_steps", "3", "--warmup_steps", "0")
    plain = train(base, folder, pairs, tmp_path / "plain", *common)
    asking = ("--agreement_steps", "1", "--agreement_rows", "3")
    watched = train(base, folder, pairs, tmp_path / "watched", *common, *asking)
    (expected,), (found,) = (sorted(out.glob("*model.safetensors")) for out in (plain, watched))
    weights = load_file(found)
    assert weights
    for name, weight in load_file(expected).items():
        assert torch.equal(weights[name], weight), name
    assert (watched / "tokenizer.json").read_bytes() == (plain / "tokenizer.json").read_bytes()
    losses = [
        [entry["loss"] for entry in history(out) if "loss" in entry] for out in (plain, watched)
    ]
    assert losses[0] == losses[1]
    assert any("agreement/well_formed" in entry for entry in history(watched))


def test_a_task_is_that_of_the_row(folder: Path, tmp_path: Path) -> None:
    rows = [row(["0.png"], task="image_understanding"), row(["0.png"], task="of another project")]
    loaded = load_pairs(write(tmp_path / "rows.jsonl", rows), str(folder)).rows
    assert [one["task"] for one in loaded] == ["image_understanding", "image_generation"]
    assert {one["task"] for one in loaded} <= TASKS.keys()
