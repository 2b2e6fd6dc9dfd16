"""What forcing a form costs at a real vocabulary, in xgrammar alone: no model, no server.

    .envs/serve-cpu/bin/python tests/bench/masks.py qwen.tiktoken [--rounds 5]

The argument is a vocabulary of Qwen in tiktoken's form (151,643 tokens; the wheel of `dashscope` on
PyPI has one, dashscope/resources/qwen.tiktoken). For each form: seconds to compile the regular
expression, which a server does once, and microseconds a token of the two steps that each token of
each text takes: to fill the mask, and to take the token.
"""

import argparse
import base64
import statistics
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
sys.path.insert(0, str(Path(__file__).parents[1]))

import xgrammar
from cot_reward.judge.grammar import grammar
from cot_reward.records import Form
from cot_reward.tasks import TASKS

TASK = TASKS["image_generation"]
REASON = "the disc is pale, and larger than the other one; its edge is a little blurred, so "
JSON_DIMENSION = f'{{"name": "x", "reason": "{REASON}", "scores": {{"Image 1": 3, "Image 2": 7}}}}'
ANSWER = "</think>\n<answer>Image 1 is better</answer>"
TEXTS: dict[str, tuple[Form, str]] = {
    "think": ("think", f"<think>\n{REASON * 20}{ANSWER}"),
    'think, behind a "<" in it': ("think", f"<think>\n1 < 2: {REASON * 20}{ANSWER}"),
    "json": (
        "json",
        '{"categories": [{"name": "c", "dimensions": ['
        + ", ".join([JSON_DIMENSION] * 12)
        + ']}], "winner": "Image 2"}',
    ),
    "answer": ("answer", "Image 1 is better"),
}


def tokens(text: bytes, ids: dict[bytes, int]) -> Iterator[int]:
    """The longest tokens first; not always as the tokenizer itself does it."""
    while text:
        length = next(n for n in range(min(len(text), 32), 0, -1) if text[:n] in ids)
        yield ids[text[:length]]
        text = text[length:]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("vocabulary", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    lines = [line.split() for line in options.vocabulary.read_bytes().splitlines() if line]
    ids = {base64.b64decode(word): int(number) for word, number in lines}
    vocabulary = [word for word, _ in sorted(ids.items(), key=lambda item: item[1])]
    end = len(vocabulary)
    info = xgrammar.TokenizerInfo(
        [*vocabulary, b"<|im_end|>"], vocab_type=xgrammar.VocabType.RAW, stop_token_ids=[end]
    )
    mask = xgrammar.allocate_token_bitmask(1, info.vocab_size)
    print(f"xgrammar {version('xgrammar')}, {end + 1:,} tokens\n")
    print("| form | compile, s | tokens of the text | fill the mask, µs a token | take it, µs |")
    print("|---|---|---|---|---|")
    for name, (form, text) in TEXTS.items():
        asked = [*tokens(text.encode(), ids), end]
        compiling, filling, taking = [], [], []
        for _ in range(options.rounds):
            began = time.perf_counter()
            compiler = xgrammar.GrammarCompiler(info, max_threads=8, cache_enabled=False)
            compiled = compiler.compile_regex(grammar(form, TASK))
            compiling.append(time.perf_counter() - began)
            matcher = xgrammar.GrammarMatcher(compiled)
            filled = taken = 0.0
            for token in asked:
                began = time.perf_counter()
                matcher.fill_next_token_bitmask(mask)
                middle = time.perf_counter()
                if not matcher.accept_token(token):
                    sys.exit(f"{name}: the text is not of the form")
                filled, taken = filled + middle - began, taken + time.perf_counter() - middle
            filling.append(1e6 * filled / len(asked))
            taking.append(1e6 * taken / len(asked))
        print(
            f"| {name} | {statistics.median(compiling):.3f} ({min(compiling):.3f} to "
            f"{max(compiling):.3f}) | {len(asked)} | {statistics.median(filling):.0f} "
            f"({min(filling):.0f} to {max(filling):.0f}) | {statistics.median(taking):.0f} |"
        )


if __name__ == "__main__":
    main()
