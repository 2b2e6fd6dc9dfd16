"""A small byte-level tokenizer like Qwen's, trained on the demo's texts, with its chat template."""

import json
import random
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AddedToken, Qwen2Tokenizer

from cot_reward.demo import world
from cot_reward.demo.lessons import picture_lesson, sum_lesson
from cot_reward.demo.settings import WorldSettings
from cot_reward.tasks import prompts
from cot_reward.training.plain_chat import PLAIN

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
# Qwen2's own pre-tokenizer. AutoTokenizer puts it into every Qwen2 tokenizer that it loads,
# whatever the saved file says. With another one here, the loaded tokenizer would give other ids.
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SYSTEM_PROMPT = "You are a helpful assistant."
_SYSTEM = (
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\n" + SYSTEM_PROMPT + "<|im_end|>\n"
    "{% endif %}"
)
_TURN = "<|im_start|>{{ message['role'] }}"


def chat_template(system: bool) -> str:
    """Chats as LLaMA-Factory's template of the family renders them; stages 1 and 2 train so.

    `system`: a chat without a system prompt gets the default one, as Qwen2-VL's does.
    """
    return PLAIN.replace(_TURN, _SYSTEM + _TURN, 1) if system else PLAIN


def build_tokenizer(template: str, vocab: int, system: bool = True) -> Qwen2Tokenizer:
    """A byte-level BPE like Qwen2's, trained on the demo's texts: at most `vocab` tokens.

    The special tokens come on top. `system` is that of `chat_template`.
    """
    rng = random.Random(0)
    texts = [f"system\n{SYSTEM_PROMPT}", "user\n", "assistant\n"] * 200
    for scene in world.scenes("cold_start", WorldSettings(cold_start=400)):
        texts.append(prompts.fill(template, {"caption": scene.caption}))
        texts.append(world.teacher_cot(scene))
        for lesson in (picture_lesson(rng, noise=0.0), sum_lesson(rng)):
            texts += [lesson.prompt.replace("<image>", ""), lesson.target]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    learned = json.loads(bpe.to_str())["model"]
    merges: Any = [tuple(merge) for merge in learned["merges"]]
    tokenizer = Qwen2Tokenizer(
        vocab=learned["vocab"],
        merges=merges,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=32768,
    )
    tokenizer.add_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    tokenizer.chat_template = chat_template(system)
    return tokenizer
