"""Chats that are written as LLaMA-Factory trains them: a response as it stands, and nothing else.

Some chat templates rewrite a response: Qwen3.5's takes the think block out, writes it anew with
other line breaks, and opens <think> before a response is generated. A model that was trained by
LLaMA-Factory on whole texts would then be served, and trained by TRL, on others.
"""

from pathlib import Path
from typing import Any

from cot_reward.store import write_text_file

TEMPLATE_FILE = "chat_template.jinja"
# Qwen's markup, without a system prompt of its own.
PLAIN = (
    "{% for message in messages %}"
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
_QUESTION = "Which is better?"
_RESPONSE = "<think>\nImage 1: 7\nImage 2: 5\n</think>\n<answer>Image 1 is better</answer>"


def rewritten(tokenizer: Any) -> str:
    """What the chat template makes of a prompt and a response, where it changes them; else "".

    `tokenizer` is a tokenizer or a processor.
    """
    turns = [{"role": "user", "content": _QUESTION}]
    prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    turns.append({"role": "assistant", "content": _RESPONSE})
    chat = tokenizer.apply_chat_template(turns, tokenize=False)
    if not chat.startswith(prompt) or not chat[len(prompt) :].startswith(_RESPONSE):
        return str(chat)
    return ""


def make_plain(folder: Path) -> bool:
    """Write PLAIN into a model's folder if its chat template rewrites responses; whether it did."""
    from transformers import AutoTokenizer

    if not rewritten(AutoTokenizer.from_pretrained(folder)):
        return False
    write_text_file(folder / TEMPLATE_FILE, PLAIN)
    return True
