"""A chat template that rewrites responses is found, and replaced by the markup of the training."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cot_reward.demo import tiny_qwen
from cot_reward.errors import UserError
from cot_reward.training.plain_chat import PLAIN, make_plain, rewritten
from helpers.dpo import row, save_model, trainer_for, write
from helpers.environments import REPO
from transformers import AutoProcessor, AutoTokenizer

# What Qwen3.5's template does to a response, in few words: the think block is taken out and written
# anew, and <think> is opened where a response is generated.
REWRITING = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['role'] == 'assistant' and message['content'] is string "
    "and '</think>' in message['content'] %}"
    "{% set parts = message['content'].split('</think>') %}"
    "<think>\n{{ parts[0].replace('<think>', '').strip() }}\n</think>\n\n{{ parts[1].strip() }}"
    "{% elif message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% elif 'text' in part %}{{ part['text'] }}"
    "{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n"
    "{% else %}<think>\n{% endif %}{% endif %}"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen3-VL whose chat template rewrites responses."""
    folder = save_model(tmp_path_factory.mktemp("model"), "qwen3_vl")
    (folder / "chat_template.jinja").write_text(REWRITING)
    return folder


def test_a_rewriting_template_is_replaced_once(model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(model, tmp_path / "model")
    told = rewritten(AutoTokenizer.from_pretrained(folder))
    assert "</think>\n\n<answer>" in told
    run = [sys.executable, "scripts/plain_chat.py", str(folder)]
    done = subprocess.run(run, cwd=REPO, capture_output=True, text=True, check=True)
    assert done.stdout == f"{folder}: chat_template.jinja is replaced\n"
    assert not make_plain(folder)
    for loaded in (AutoTokenizer, AutoProcessor):
        assert not rewritten(loaded.from_pretrained(folder))


@pytest.mark.parametrize("family", list(tiny_qwen.FAMILIES))
def test_the_templates_of_trained_markup_pass(family: str) -> None:
    tokenizer = tiny_qwen.build_tokenizer("Judge. Text Caption: [{caption}]", 400, family)
    assert not rewritten(tokenizer)
    assert (tokenizer.chat_template == PLAIN) == (family != "qwen2_5_vl")


def test_stage_3_refuses_a_model_that_rewrites_responses(
    model: Path, folder: Path, tmp_path: Path
) -> None:
    pairs = write(tmp_path / "pairs.jsonl", [row(["0.png", "1.png"])])
    with pytest.raises(UserError, match=r"rewrites responses .* run scripts/plain_chat\.py"):
        trainer_for(model, folder, pairs, tmp_path / "out")


def test_a_folder_without_a_model_is_an_error(tmp_path: Path) -> None:
    run = [sys.executable, "scripts/plain_chat.py", str(tmp_path)]
    done = subprocess.run(run, cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"{tmp_path}: is not a model's folder" in done.stderr
