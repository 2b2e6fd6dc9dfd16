"""A tiny Qwen2.5-VL with random weights, its tokenizer and its processor.

LLaMA-Factory, vLLM and TRL load it as they load a released one.
"""

import json
import random
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AddedToken,
    GenerationConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from cot_reward.demo import world
from cot_reward.demo.lessons import picture_lesson, sum_lesson
from cot_reward.demo.settings import ModelSizes, WorldSettings
from cot_reward.tasks import prompts

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
# Renders chats as LLaMA-Factory's template qwen2_vl does, which stages 1 and 2 train with.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\n" + SYSTEM_PROMPT + "<|im_end|>\n"
    "{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' or 'image' in part or 'image_url' in part %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' or 'video' in part %}"
    "<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in part %}{{ part['text'] }}"
    "{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PATCH_SIZE = 14  # pixels
MERGE_SIZE = 2  # patches in a row and in a column of an image token
TOKEN_PIXELS = PATCH_SIZE * MERGE_SIZE
IMAGE_TOKENS = (world.SIDE_PIXELS // TOKEN_PIXELS) ** 2


def build_tokenizer(template: str, vocab: int) -> Qwen2Tokenizer:
    """A byte-level BPE like Qwen2's, trained on the demo's texts: at most `vocab` tokens.

    The special tokens come on top.
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
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def build_processor(tokenizer: Qwen2Tokenizer) -> Qwen2_5_VLProcessor:
    """Qwen2-VL's processor, which keeps the demo's pictures at their own size.

    Its pixel bounds are wide. The project has one bound on pixels (`media.images.bound`, the
    arithmetic of LLaMA-Factory), and the processor must not resize a second time.
    """
    bounds = {"shortest_edge": TOKEN_PIXELS**2, "longest_edge": 1280 * TOKEN_PIXELS**2}
    shape: dict[str, Any] = {
        "patch_size": PATCH_SIZE,
        "merge_size": MERGE_SIZE,
        "temporal_patch_size": 2,
    }
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=dict(bounds), **shape),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size=dict(bounds), **shape),
        chat_template=CHAT_TEMPLATE,
    )


def build_model(tokenizer: Qwen2Tokenizer, sizes: ModelSizes) -> Qwen2_5_VLForConditionalGeneration:
    """A Qwen2.5-VL of these sizes with random float32 weights, from torch's global generator."""
    ids: dict[str, Any] = {
        token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS
    }
    frequencies = sizes.hidden // sizes.heads // 2
    # Time, height and width share the rotary frequencies 1 : 1.5 : 1.5, as in the released models.
    for_time = frequencies // 4
    for_height = (frequencies - for_time) // 2
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": sizes.hidden,
            "intermediate_size": sizes.mlp,
            "num_hidden_layers": sizes.layers,
            "num_attention_heads": sizes.heads,
            "num_key_value_heads": sizes.kv_heads,
            "max_position_embeddings": 32768,
            "max_window_layers": sizes.layers,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1_000_000.0,
                "mrope_section": [for_time, for_height, frequencies - for_time - for_height],
            },
            "tie_word_embeddings": True,
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
            # At the usual 0.02 a model as narrow as this learned too little in 600 steps.
            "initializer_range": 0.05,
        },
        vision_config={
            "depth": sizes.vision_layers,
            "hidden_size": sizes.vision_hidden,
            "intermediate_size": sizes.vision_mlp,
            "num_heads": sizes.vision_heads,
            "out_hidden_size": sizes.hidden,
            "patch_size": PATCH_SIZE,
            "spatial_merge_size": MERGE_SIZE,
            "temporal_patch_size": 2,
            "window_size": 112,
            "fullatt_block_indexes": [sizes.vision_layers - 1],
            "initializer_range": 0.05,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        bos_token_id=ids["<|endoftext|>"],
        eos_token_id=[ids["<|im_end|>"], ids["<|endoftext|>"]],
        pad_token_id=ids["<|endoftext|>"],
    )
    return model
