"""Stage 3's training: every pair weighs the same, and runs resume."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cot_reward.dpo import run
from cot_reward.dpo.pairs import load_pairs
from helpers.dpo import FORM, collator_for, trainer_for, varied, write
from helpers.environments import REPO
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, TrainerCallback

ENVIRONMENT = {
    **os.environ,
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "TQDM_DISABLE": "1",
    "DS_ACCELERATOR": "cpu",
}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Eleven rows: the last batch of an epoch is never full."""
    rows = varied(11, images=(2, 1, 3), form=FORM)
    return write(tmp_path_factory.mktemp("rows") / "pairs.jsonl", rows)


def history(out: Path, key: str = "loss") -> list[float]:
    entries = json.loads((out / "trainer_state.json").read_text())["log_history"]
    return [entry[key] for entry in entries if key in entry]


def weights(out: Path) -> dict[str, torch.Tensor]:
    (path,) = out.glob("*model.safetensors")
    return load_file(path)


def trained(base: Path, folder: Path, pairs: str, out: Path, *flags: str, dies_at: int = 0) -> Any:
    """A finished run; `dies_at`: one that stops behind that step, as a crash would."""

    class Dies(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == dies_at:
                raise KeyboardInterrupt

    common = ("--max_steps", "-1", "--num_train_epochs", "2", "--warmup_steps", "0")
    trainer, parsed = trainer_for(base, folder, pairs, out, *common, *flags)
    if not dies_at:
        run.train(trainer, *parsed)
        return trainer
    trainer.add_callback(Dies())
    with pytest.raises(KeyboardInterrupt):
        run.train(trainer, *parsed)
    return trainer


@pytest.mark.slow
def test_accumulation_and_batch_size_change_nothing(
    base: Path, folder: Path, pairs: str, tmp_path: Path
) -> None:
    """4 = 2 x 2 = 1 x 4 pairs a step, and 11 of them: stock TRL lets the last ones weigh more."""
    for size in (4, 2, 1):
        flags = f"--per_device_train_batch_size {size} --gradient_accumulation_steps {4 // size}"
        trained(base, folder, pairs, tmp_path / str(size), *flags.split())
    expected_weights = weights(tmp_path / "4")
    assert len(history(tmp_path / "4")) == 6
    assert history(tmp_path / "1") == pytest.approx(history(tmp_path / "4"), rel=1e-5)
    for size in ("2", "1"):
        for key in ("loss", "rewards/margins", "rewards/accuracies"):
            # At the first step policy and reference are one, and rounding makes the margin.
            assert history(tmp_path / size, key)[1:] == pytest.approx(
                history(tmp_path / "4", key)[1:], rel=1e-4, abs=1e-4
            )
        for name, weight in weights(tmp_path / size).items():
            torch.testing.assert_close(weight, expected_weights[name], rtol=0, atol=1e-5)


def launched(base: Path, folder: Path, pairs: str, out: Path, count: int, *flags: str) -> Path:
    """The output of a run of `count` processes, four pairs a step; held out are the same rows."""
    command = (
        f"-m torch.distributed.run --standalone --nproc_per_node {count} scripts/DPO_VL.py "
        f"--config configs/demo/dpo.yaml --model_name_or_path {base} --data_path {pairs} "
        f"--eval_data_path {pairs} --image_folder {folder} --output_dir {out} "
        f"--reference_cache_dir {out}/cache --per_device_train_batch_size {4 // count} "
        f"--per_device_eval_batch_size {4 // count} --report_to none --num_train_epochs 2 "
        "--warmup_steps 0"
    )
    done = subprocess.run(
        [sys.executable, *command.split(), *flags],
        cwd=REPO,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return out


@pytest.mark.slow
def test_two_processes_train_as_one(base: Path, folder: Path, pairs: str, tmp_path: Path) -> None:
    """Over gloo, plain and under DeepSpeed; the last three pairs are spread two and one."""
    one = launched(base, folder, pairs, tmp_path / "one", 1)
    saving = ("--save_strategy", "steps", "--save_steps", "4")
    many = [launched(base, folder, pairs, tmp_path / "two", 2, *saving)]
    # Taken up in the middle of the second epoch, at whose end there are three pairs for two.
    resuming = ("--resume_from_checkpoint", f"{tmp_path}/two/checkpoint-4")
    many.append(launched(base, folder, pairs, tmp_path / "resumed", 2, *resuming))
    # DeepSpeed compiles its exchange of data between processes.
    if shutil.which("g++"):
        zero = ("--deepspeed", "configs/deepspeed/zero2.json")
        many.append(launched(base, folder, pairs, tmp_path / "zero2", 2, *zero))
    assert len(history(one)) == 6
    expected_weights = weights(one)
    for out in many:
        keys = ("loss", "rewards/margins", "rewards/accuracies_answer_2", "grad_norm")
        for key in (*keys, "answer_rewards/margins", "reasoning_logps/chosen"):
            # At the first step policy and reference are one, and rounding makes the margin. A later
            # one is a difference of sums of some -200, whose last bit is 1.5e-5; times beta.
            near = pytest.approx(history(one, key)[1:], rel=1e-3, abs=1e-5)
            assert history(out, key)[1:] == near, key
        for key in ("eval_rewards/margins", "eval_loss", "eval_answer_rewards/margins"):
            assert history(out, key) == pytest.approx(history(one, key), rel=1e-3, abs=1e-5), key
        for name, weight in weights(out).items():
            # DeepSpeed writes the head, too, that is tied to the embedding.
            expected = expected_weights[
                "model.embed_tokens.weight" if name == "lm_head.weight" else name
            ]
            torch.testing.assert_close(weight, expected, rtol=0, atol=1e-5)
        # Each process computed its part of the reference log-probs, and no row was lost.
        files = list((out / "cache").glob("*/*.jsonl"))
        texts = [json.loads(line)["text"] for path in files for line in path.open()]
        assert len(files) == 2
        assert len(set(texts)) == 22
        summary = json.loads((out / "summary.json").read_text())
        # The held-out rows are the same, and were there.
        assert summary["reference_logps"] == {"found": 0, "computed": 22}


@pytest.mark.slow
@pytest.mark.parametrize("adapter", [(), ("--use_peft", "--freeze_vision_tower")])
def test_a_resumed_run_ends_with_the_same_weights(
    base: Path, folder: Path, pairs: str, tmp_path: Path, adapter: tuple[str, ...]
) -> None:
    saving = ("--save_strategy", "steps", "--save_steps", "3", *adapter)
    trained(base, folder, pairs, tmp_path / "uninterrupted", *saving)
    cut = tmp_path / "cut"
    trained(base, folder, pairs, cut, *saving, dies_at=8)
    trainer = trained(base, folder, pairs, cut, *saving, "--resume_from_checkpoint", "true")
    assert trainer.reference_counts == {"found": 22, "computed": 0}
    assert len(history(cut)) == len(history(tmp_path / "uninterrupted")) == 12
    for name, weight in weights(cut).items():
        assert torch.equal(weight, weights(tmp_path / "uninterrupted")[name]), name


@pytest.mark.slow
def test_a_killed_run_is_taken_up(base: Path, folder: Path, pairs: str, tmp_path: Path) -> None:
    def start(out: Path, *flags: str) -> subprocess.Popen[bytes]:
        command = (
            f"{sys.executable} scripts/DPO_VL.py --config configs/demo/dpo.yaml "
            f"--model_name_or_path {base} --data_path {pairs} --image_folder {folder} "
            f"--output_dir {out} --report_to none --per_device_train_batch_size 1 "
            "--num_train_epochs 4 --save_strategy steps --save_steps 5"
        )
        return subprocess.Popen([*command.split(), *flags], cwd=REPO, env=ENVIRONMENT)

    out = tmp_path / "out"
    running = start(out)
    # Wherever it then is, in a step or half-way through saving.
    while not (out / "checkpoint-10").exists():
        assert running.poll() is None, "ended before it could be killed"
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    assert not (out / "summary.json").exists()
    assert start(out, "--resume_from_checkpoint", "true").wait() == 0
    assert start(tmp_path / "uninterrupted").wait() == 0
    assert len(history(out)) == 44
    for name, weight in weights(out).items():
        assert torch.equal(weight, weights(tmp_path / "uninterrupted")[name]), name


@pytest.mark.slow
def test_half_a_checkpoint_is_passed_over(
    base: Path, folder: Path, pairs: str, tmp_path: Path
) -> None:
    saving = ("--save_strategy", "steps", "--save_steps", "3")
    trained(base, folder, pairs, tmp_path / "out", *saving)
    expected_weights = weights(tmp_path / "out")
    state = tmp_path / "out/checkpoint-9/trainer_state.json"
    state.write_text(state.read_text()[:100])
    (tmp_path / "out/checkpoint-12/model.safetensors").write_bytes(b"cut")
    (tmp_path / "out/checkpoint-12/trainer_state.json").unlink()
    resuming = (*saving, "--resume_from_checkpoint", "true")
    trainer = trained(base, folder, pairs, tmp_path / "out", *resuming)
    assert trainer.args.resume_from_checkpoint.endswith("checkpoint-6")
    for name, weight in weights(tmp_path / "out").items():
        assert torch.equal(weight, expected_weights[name])


def test_deepspeed_does_not_round_reference_log_probs(
    base: Path, folder: Path, pairs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers casts a batch's floats to what the DeepSpeed configuration names."""
    trainer, _ = trainer_for(base, folder, pairs, tmp_path / "out")
    batch = trainer.data_collator([trainer.train_dataset[0]])
    plugin = SimpleNamespace(hf_ds_config=SimpleNamespace(dtype=lambda: torch.bfloat16))
    monkeypatch.setattr(type(trainer.accelerator.state), "deepspeed_plugin", plugin, raising=False)
    trainer.is_deepspeed_enabled = True
    ready = trainer._prepare_inputs(batch)
    assert ready["pixel_values"].dtype == torch.bfloat16
    assert torch.equal(ready["ref_logps"], batch["ref_logps"])
    assert batch["ref_logps"].any()


def test_held_out_loss_does_not_depend_on_the_batch_size(
    base: Path, folder: Path, pairs: str, tmp_path: Path
) -> None:
    losses = []
    for size in (1, 4, 11):
        trainer, _ = trainer_for(base, folder, pairs, tmp_path / "out")
        trainer.args.per_device_eval_batch_size = size
        losses.append(trainer.evaluate(trainer.train_dataset)["eval_loss"])
    assert losses[0] == pytest.approx(losses[2], rel=1e-6)
    assert losses[1] == pytest.approx(losses[2], rel=1e-6)


def test_a_logged_point_weighs_every_pair_the_same(
    base: Path, folder: Path, pairs: str, tmp_path: Path
) -> None:
    """One point has steps of ten pairs and of one; it has each term of the loss apart."""
    flags = "--max_steps -1 --num_train_epochs 1 --learning_rate 0 --logging_steps 2"
    sizes = "--per_device_train_batch_size 5 --gradient_accumulation_steps 2"
    trainer, _ = trainer_for(base, folder, pairs, tmp_path / "out", *flags.split(), *sizes.split())
    trainer.get_train_dataloader()  # computes the reference log-probs
    disturb(trainer.model)
    rows = trainer.train_dataset
    alone = [trainer.evaluate(rows.select([index])) for index in range(len(rows))]
    margins = torch.tensor([one["eval_rewards/margins"] for one in alone], dtype=torch.float64)
    assert margins.std() > 0.05
    tokens = [
        int(trainer.data_collator([row])["completion_mask"].chunk(2)[0].sum()) for row in rows
    ]
    logps = [one["eval_logps/chosen"] for one in alone]
    expected = {
        "loss/sigmoid": -torch.nn.functional.logsigmoid(margins).mean().item(),
        "loss/sft": -sum(logps) / sum(tokens),
        "rewards/margins": margins.mean().item(),
        "rewards/accuracies": (margins > 0).double().mean().item(),
        "logps/chosen": sum(logps) / len(rows),
    }
    expected["loss"] = expected["loss/sigmoid"] + trainer.loss_weights[1] * expected["loss/sft"]
    trainer.train()
    (logged,) = [entry for entry in trainer.state.log_history if "loss" in entry]
    # transformers' mean over steps is another number.
    steps_mean = trainer.state.log_history[-1]["train_loss"]
    assert steps_mean != pytest.approx(expected["loss"], rel=1e-3)
    for key, value in expected.items():
        assert logged[key] == pytest.approx(value, rel=1e-4), key


def disturb(model: torch.nn.Module) -> None:
    """Move the weights away from those of the reference."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))


@pytest.mark.parametrize(
    "flags", [(), ("--reference_cache", "false"), ("--shared_prefix", "false"), ("--use_peft",)]
)
@pytest.mark.parametrize("ld_alpha", [None, 0.5])
def test_the_margin_is_that_of_the_answers_and_that_of_the_reasoning(
    base: Path, folder: Path, tmp_path: Path, flags: tuple[str, ...], ld_alpha: float | None
) -> None:
    """Against log-probs of the tokens from the logits of policy and reference, pair by pair."""
    rows = varied(4, images=(2, 1), form=FORM)
    rows[1]["rejected"] = "no answer"
    path = write(tmp_path / "pairs.jsonl", rows)
    if ld_alpha:
        flags = (*flags, "--ld_alpha", str(ld_alpha))
    trainer, _ = trainer_for(base, folder, path, tmp_path / "out", *flags)
    trainer.get_train_dataloader()  # computes the reference log-probs
    batch = collator_for(base, folder)(list(load_pairs(path, str(folder)).dataset()))
    stock = AutoModelForImageTextToText.from_pretrained(base)
    reference = token_logps(stock, batch)
    if "--use_peft" in flags:
        disturb_adapter(trainer.model)
        stock = trainer.model
    else:
        disturb(trainer.model)
        stock.load_state_dict(trainer.model.state_dict())
    policy = token_logps(stock, batch)

    learned, answers = (batch[name][:, 1:] for name in ("completion_mask", "answer_mask"))
    weights = torch.ones_like(policy)
    if ld_alpha:
        shorter = torch.minimum(*learned.sum(dim=1).chunk(2)).repeat(2)[:, None]
        weights[learned.cumsum(dim=1) > shorter] = ld_alpha
    kept = [0, 2, 3]  # the pair without an answer is left out
    expected = {"no_answer_block": 0.25}
    margins = []
    for part, mask in (("answer", answers), ("reasoning", learned - answers)):
        logps = ((policy * mask).sum(dim=1) / mask.sum(dim=1)).chunk(2)
        rewards = 0.3 * ((policy - reference) * mask * weights).sum(dim=1)
        chosen, rejected = rewards.chunk(2)
        margins.append((chosen - rejected)[kept])
        expected |= {
            f"{part}_logps/chosen": logps[0][kept].mean(),
            f"{part}_logps/rejected": logps[1][kept].mean(),
            f"{part}_rewards/chosen": chosen[kept].mean(),
            f"{part}_rewards/rejected": rejected[kept].mean(),
            f"{part}_rewards/margins": margins[-1].mean(),
        }
    # The chosen answers of the three pairs are 1, 1 and 2.
    expected["answer_rewards/margins_answer_1"] = margins[0][:2].mean()
    expected["answer_rewards/margins_answer_2"] = margins[0][2]
    trainer.eval_dataset = trainer.train_dataset
    for size in (1, 3, 4):
        trainer.args.per_device_eval_batch_size = size
        found = trainer.evaluate()
        for name, value in expected.items():
            assert found[f"eval_{name}"] == pytest.approx(float(value), rel=1e-4, abs=1e-4), name
    whole = sum(margins).mean()
    trainer.eval_dataset = trainer.train_dataset.select(kept)
    of_blocks = trainer.evaluate()["eval_rewards/margins"]
    assert of_blocks == pytest.approx(float(whole), rel=1e-4, abs=1e-4)
    assert min(part.abs().max() for part in margins) > 0.01


def disturb_adapter(model: Any) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))


def token_logps(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    """Log-probs of the responses' tokens, (2 x pairs, length - 1); 0 for all other tokens."""
    skipped = ("completion_mask", "answer_mask", "pairs", "images")
    inputs = {name: value for name, value in batch.items() if name not in skipped}
    with torch.no_grad():
        logps = model(**inputs).logits[:, :-1].log_softmax(dim=-1)
    of_tokens = logps.gather(2, batch["input_ids"][:, 1:, None])[..., 0]
    return of_tokens * batch["completion_mask"][:, 1:]


@pytest.mark.slow
def test_the_best_checkpoint_by_held_out_accuracy_is_kept(
    base: Path, folder: Path, pairs: str, tmp_path: Path
) -> None:

    flags = (
        f"--eval_data_path {pairs} --eval_strategy steps --eval_steps 1 --save_strategy steps "
        "--save_steps 1 --max_steps 3 --load_best_model_at_end true --warmup_steps 0"
    )
    trainer, parsed = trainer_for(base, folder, pairs, tmp_path, *flags.split())

    class Worsens(TrainerCallback):
        def on_evaluate(self, *_: Any, metrics: dict[str, float], **__: Any) -> None:
            metrics["eval_rewards/accuracies"] -= trainer.state.global_step

    # Before the trainer's own callbacks look at the metrics.
    trainer.callback_handler.callbacks.insert(0, Worsens())
    run.train(trainer, *parsed)
    best = Path(trainer.state.best_model_checkpoint)
    assert best.name == "checkpoint-1"
    last = weights(tmp_path / "checkpoint-3")
    assert any(not torch.equal(weight, last[name]) for name, weight in weights(best).items())
    for name, weight in weights(best).items():
        assert torch.equal(weight, weights(tmp_path)[name])


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


@pytest.mark.parametrize("adapter", [(), ("--use_peft",)])
def test_prompts_count_as_tokens_and_as_work(
    base: Path, folder: Path, tmp_path: Path, adapter: tuple[str, ...]
) -> None:
    """As many tokens are seen as by stock TRL; a shared prompt is worked on once."""
    # Two rows of one length.
    path = write(tmp_path / "rows.jsonl", varied(1, images=(2,), form=FORM) * 2)
    flags = ("--include_num_input_tokens_seen", "true", *adapter)
    done = {}
    for shared in ("true", "false"):
        out = tmp_path / shared
        trainer, parsed = trainer_for(base, folder, path, out, "--shared_prefix", shared, *flags)
        rows = [trainer.train_dataset[index] for index in (0, 1)]
        batch = trainer.data_collator(rows)
        run.train(trainer, *parsed)
        done[shared] = trainer, batch
    ours, shared_batch = done["true"]
    stock, stock_batch = done["false"]
    tokens = stock_batch["input_ids"].numel()
    assert ours.state.num_input_tokens_seen == stock.state.num_input_tokens_seen == tokens
    chosen, rejected = (int(part.sum()) for part in stock_batch["completion_mask"].chunk(2))
    prompts = (int(stock_batch["attention_mask"].sum()) - chosen - rejected) // 2
    # The copies of a prompt's last token at the head of the responses are run, too.
    work = prompts + chosen + rejected + 2
    assert shared_batch["input_ids"].numel() < work < tokens
    weights = ours.model.num_parameters(exclude_embeddings=True)
    assert ours.state.total_flos == 6 * work * weights
